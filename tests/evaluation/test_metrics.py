"""Metrics of prediction rows, and the slices that a row belongs to."""

from __future__ import annotations

import math

import pytest

from epmvg.core.types import InputError
from epmvg.evaluation.metrics import MAX_NAMES, PROTOCOLS, SLICINGS, Metrics, slices

TARGET = [40.0, 30.0, 100.0, 90.0]


def test_an_iou_of_exactly_the_threshold_counts() -> None:
    box = (0.0, 0.0, 1.0, 1.0)
    rows = [{"iou": iou, "box": box, "target": box} for iou in (math.nextafter(0.5, 0), 0.25, 0.5, 0.75)]
    metrics = Metrics.of(rows)
    assert (metrics.acc25, metrics.acc50, metrics.acc75) == (1.0, 0.5, 0.25)
    assert all(text.startswith("IoU >= 0.5") for text in PROTOCOLS.values())
    with pytest.raises(InputError, match="no predictions to score"):
        Metrics.of([])


@pytest.mark.parametrize(
    ("title", "phrase", "name"),
    [
        ("Side words", "man on the LEFT", "with"),
        ("Side words", "rightmost cup", "with"),
        ("Side words", "a bright laptop on the desktop", "without"),
        ("Color words", "the grey-haired man", "with"),
        ("Color words", "a bored man", "without"),
        ("Relation words", "the dog next to her", "with"),
        ("Relation words", "woman holding a cup", "with"),
        ("Relation words", "a dog", "without"),
        ("Data set", "a dog", "refcoco testA"),
        ("Type of object", "a dog", "animals"),
        ("Length of the phrase", "a dog", "1 or 2 words"),
        ("Size of the target", "a dog", "medium (< 96² px)"),
    ],
)
def test_a_row_is_in_the_slices_it_names(title: str, phrase: str, name: str) -> None:
    row = {"phrase": phrase, "target": TARGET, "dataset": "refcoco", "split": "testA", "types": ["animals"]}
    assert list(SLICINGS[title].names_of(row)) == [name]


def test_only_slicings_with_several_names_are_shown_and_rare_names_are_not() -> None:
    rows = [{"phrase": "a dog", "target": TARGET, "kind": f"kind {i}"} for i in range(20) for _ in range(20 - i)]
    divided = slices(rows)
    assert list(divided) == ["Kind of phrase"]
    assert list(divided["Kind of phrase"]) == [f"kind {i}" for i in range(MAX_NAMES)]
    assert len(divided["Kind of phrase"]["kind 3"]) == 17
