"""Flickr30k Entities: chains of boxes."""

from __future__ import annotations

from pathlib import Path

from layouts import write_flickr

from epmvg.data.registry import open_samples


def test_boxes_of_a_chain_become_their_union(tmp_path: Path) -> None:
    dogs, ball = open_samples("flickr30k", split="test", root=write_flickr(tmp_path))
    assert (dogs.phrase, dogs.box, dogs.id) == ("Two dogs", (0, 0, 40, 30), "123#0:0-2/EN#1")
    assert dogs.extra["types"] == ["people", "other"] and dogs.extra["n_boxes"] == 2
    assert dogs.extra["boxes"] == [[0, 0, 10, 20], [30, 10, 10, 20]] and dogs.size == (50, 40)
    assert (ball.phrase, ball.box, ball.id) == ("a red ball", (4, 5, 5, 6), "123#1:4-7/EN#2")  # one pixel
