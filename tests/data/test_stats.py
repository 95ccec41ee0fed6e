"""Counts of a data set, from its annotations alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from layouts import write_flickr
from strategies import TARGETS
from typer.testing import CliRunner

from epmvg.cli import app
from epmvg.data.convert import convert_data
from epmvg.data.registry import open_samples
from epmvg.data.stats import count_samples


def test_stats_of_every_format(tmp_path: Path, squares: Path) -> None:
    for target in TARGETS.values():
        convert_data(str(squares), tmp_path / target)
        result = CliRunner().invoke(app, ["data", "stats", str(tmp_path / target), "--json"])
        counts = json.loads(result.stdout)
        assert counts["splits"]["val"] | {"images": 6, "phrases": 24, "boxes": 24} == counts["splits"]["val"]
        assert open_samples(str(tmp_path / target), split="train")[0].split == "train"


def test_stats_need_no_images(tmp_path: Path) -> None:
    counts = count_samples("flickr30k", root=write_flickr(tmp_path))
    share = counts["splits"]["test"].pop("box_fraction")
    assert share == pytest.approx((1200 + 1) / 2 / 2000, abs=1e-4)
    held = {"images": 1, "phrases": 2, "boxes": 2, "words": 2.5, "longest": 3, "distinct": 2}
    assert counts == {"data": "flickr30k", "splits": {"test": held}, "skipped": {}, "first_skipped": {}}
