"""Left and right are swapped as words where they are sides, and else forbid a flip."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from epmvg.config.settings import AugmentSettings
from epmvg.data.side_words import has_clear_sides, names_place, swap_sides
from epmvg.data.transforms import draw_transform


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("the man on the left", "the man on the right"),
        ("Leftmost cup", "Rightmost cup"),
        ("RIGHT side", "LEFT side"),
        ("left-hand dog", "right-hand dog"),
        ("right-most lefthand leftside rightest", "left-most righthand rightside leftest"),
        ("facing leftwards", "facing rightwards"),
        ("bright upright copyright leftovers", "bright upright copyright leftovers"),
        ("left of the right one", "right of the left one"),
    ],
)
def test_sides_swap_as_words(before: str, after: str) -> None:
    assert swap_sides(before) == after
    assert swap_sides(after) == before


@pytest.mark.parametrize(
    "phrase",
    [
        *("the man right behind the car", "the one right in front of us", "sitting right next to the dog"),
        *("the last slice left on the plate", "the only piece left", "a dog left behind", "what is left"),
        *("the man who left", "guy that left, in red", "she left", "who's left", "the last piece left of the cake"),
        *("what's left of the cake", "what is left of it", "all that is left of the sandwich"),
        *("all right", "the right way up", "the guy walking right behind her", "cup right by the fork"),
    ],
)
def test_an_image_is_not_flipped_where_a_word_may_be_no_side(phrase: str) -> None:
    assert swap_sides(phrase) == phrase
    for seed in range(8):
        random = np.random.default_rng(seed)
        phrases = ["the cup on the left", phrase]
        assert not draw_transform(
            (60, 40), 60, [(1, 2, 9, 9)] * 2, phrases, AugmentSettings(horizontal_flip=1.0), random
        ).letterbox.flip


@pytest.mark.parametrize(
    ("phrase", "flipped"),
    [
        ("man on right behind the car", "man on left behind the car"),
        ("bottom right next to the cup", "bottom left next to the cup"),
        ("her right arm", "her left arm"),
        ("zebra left", "zebra right"),
        ("the man left of the car", "the man right of the car"),
        ("the cup left of the cake", "the cup right of the cake"),
        ("guy who's right of her", "guy who's left of her"),
        ("the last one on the left of the rack", "the last one on the right of the rack"),
        ("that left side", "that right side"),
        ("second from right", "second from left"),
        ("left guy in front", "right guy in front"),
        ("dog looking right", "dog looking left"),
    ],
)
def test_sides_are_flipped_with_their_image(phrase: str, flipped: str) -> None:
    assert swap_sides(phrase) == flipped
    transform = draw_transform(
        (60, 40), 60, [(1, 2, 9, 9)], [phrase], AugmentSettings(horizontal_flip=1.0), np.random.default_rng(0)
    )
    assert transform.letterbox.flip


def test_most_real_phrases_with_a_side_can_be_flipped(shared: Path) -> None:
    lines = (shared / "real_grounding" / "annotations.jsonl").read_text(encoding="utf-8").splitlines()
    sided = [phrase for line in lines if re.search(r"\b(left|right)\b", phrase := json.loads(line)["phrase"])]
    assert len(sided) > 500 and sum(map(has_clear_sides, sided)) > 0.95 * len(sided)


def test_places_are_words() -> None:
    for phrase in ("top left corner", "the middle one", "rightmost", "left-hand cup", "uppermost", "Leftside guy"):
        assert names_place(phrase)
    for phrase in ("a laptop that stops in bright light", "leftovers", "middleweight boxer", "bottomless"):
        assert not names_place(phrase)
