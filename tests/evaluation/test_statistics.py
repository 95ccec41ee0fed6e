"""Bootstrap intervals, paired differences and confidence metrics agree with their definitions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epmvg.core.types import InputError
from epmvg.evaluation.statistics import (
    aurc,
    auroc,
    bootstrap,
    calibration_error,
    compare,
    confidence_metrics,
    difference,
    reliability,
    risk_coverage,
)

TARGET = [40.0, 30.0, 100.0, 90.0]


def make_rows(ious: Sequence[float], per_image: int = 2) -> list[dict[str, Any]]:
    """Rows with these IoUs, `per_image` phrases per image."""
    return [
        {
            "image": f"images/{number // per_image}.jpg",
            "phrase": f"the thing number {number}",
            "box": TARGET,
            "target": TARGET,
            "iou": iou,
            "score": 0.5,
            "id": f"row-{number}",
        }
        for number, iou in enumerate(ious)
    ]


# Intervals and differences


def test_difference_is_counted_by_hand() -> None:
    a, b = make_rows([0.9, 0.1, 0.5, 0.3]), make_rows([0.9, 0.6, 0.4999, 0.7])  # hits 1,0,1,0 and 1,1,0,1
    difference = compare(a, b)
    assert difference.points == pytest.approx(25.0)
    assert (difference.images, difference.phrases) == (2, 4)
    assert compare(b, a).points == pytest.approx(-25.0)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.integers(1, 4))
def test_interval_lies_in_the_data_and_identical_runs_differ_by_nothing(ious: list[float], per_image: int) -> None:
    rows = make_rows(ious, per_image)
    low, high = bootstrap(rows, value=lambda row: row["iou"])
    assert min(ious) - 1e-9 <= low <= high <= max(ious) + 1e-9
    same = compare(rows, rows)
    assert (same.points, same.low, same.high, same.significant) == (0.0, 0.0, 0.0, False)


def test_a_difference_on_three_images_is_not_significant() -> None:
    worse, better = make_rows([0.1] * 3, per_image=1), make_rows([0.9] * 3, per_image=1)
    difference = compare(worse, better)
    assert difference.points == 100 and difference.p > 0.2 and not difference.significant
    many = compare(make_rows([0.1] * 30, per_image=1), make_rows([0.9] * 30, per_image=1))
    assert many.significant and many.p <= 0.05


def test_interval_contains_the_point_and_has_the_textbook_width() -> None:
    rng = random.Random(5)
    rows = make_rows([float(rng.random() < 0.6) for _ in range(900)], per_image=1)
    fraction = sum(row["iou"] for row in rows) / 900
    low, high = bootstrap(rows)
    assert low < fraction < high
    assert high - low == pytest.approx(2 * 1.96 * (fraction * (1 - fraction) / 900) ** 0.5, rel=0.1)


def test_phrases_of_one_image_count_as_one_draw() -> None:
    """Ten equal phrases of an image are as one."""
    hits = [float(number % 3 == 0) for number in range(60)]
    alone = make_rows(hits, per_image=1)
    together = make_rows([hit for hit in hits for _ in range(10)], per_image=10)
    assert bootstrap(together) == pytest.approx(bootstrap(alone), abs=0.02)


def test_rows_are_paired_in_any_order_where_both_have_them() -> None:
    a, b = make_rows([0.9, 0.1, 0.5, 0.3] * 5), make_rows([0.9, 0.6, 0.4, 0.7] * 5)
    whole = compare(a, b)
    assert compare(a, random.Random(1).sample(b, len(b))) == whole
    part = compare(a, b[:4])
    assert part.phrases == 4
    assert part.points == pytest.approx(25.0)
    with pytest.raises(InputError, match="no phrase in common"):
        compare(a[:2], b[2:])


def test_repeated_phrases_without_an_id_are_paired_in_order() -> None:
    rows = [row | {"id": "", "phrase": "a dog", "image": "a.jpg"} for row in make_rows([0.9, 0.1])]
    assert compare(rows, rows).phrases == 2


def test_a_difference_has_the_interval_of_independent_images() -> None:
    """The phrases of an image are equal here, so the textbook's interval counts images."""
    rng = random.Random(7)
    before, after = [], []
    for _ in range(400):
        a, b = float(rng.random() < 0.5), float(rng.random() < 0.6)
        before += [a] * 4
        after += [b] * 4
    difference = compare(make_rows(before, 4), make_rows(after, 4))
    gains = [100 * (b - a) for a, b in zip(before[::4], after[::4], strict=True)]
    mean = sum(gains) / 400
    error = (sum((gain - mean) ** 2 for gain in gains) / 399 / 400) ** 0.5
    assert difference.points == pytest.approx(mean)
    assert difference.low == pytest.approx(mean - 1.96 * error, abs=0.2 * error)
    assert difference.high == pytest.approx(mean + 1.96 * error, abs=0.2 * error)


def test_p_is_uniform_without_a_difference_and_images_flip_together() -> None:
    """Copies of an image's phrases do not change p."""
    rng = random.Random(8)
    chances = []
    for _ in range(16):
        gains = [rng.gauss(0, 1) for _ in range(40)]
        alone = difference([str(i) for i in range(40)], gains)
        copied = difference([str(i // 5) for i in range(200)], [gain for gain in gains for _ in range(5)])
        assert copied.p == pytest.approx(alone.p, abs=0.02)
        chances.append(alone.p)
    assert min(chances) > 0.001 and sum(chances) / 16 == pytest.approx(0.5, abs=0.2)
    by_hand = difference(["a", "b", "c"], [1.0, 1.0, 1.0])  # 2 of 8 sign changes reach as far
    assert by_hand.p == pytest.approx(0.25, abs=0.02)


# Confidence

ROWS = st.lists(st.tuples(st.sampled_from([0.1, 0.25, 0.5, 0.8, 0.9]), st.booleans()), min_size=2, max_size=25)


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_confidence_metrics_do_not_depend_on_the_order_of_rows(rows: list[tuple[float, bool]]) -> None:
    """AUROC is the fraction of pairs in which the correct row scores higher, ties half."""
    score, correct = (np.array(part, np.float64) for part in zip(*rows, strict=True))
    order = np.random.default_rng(0).permutation(len(rows))
    for metric in (calibration_error, aurc, auroc):
        assert metric(score, correct) == pytest.approx(metric(score[order], correct[order]))
    yes, no = score[correct == 1], score[correct == 0]
    if len(yes) and len(no):
        assert auroc(score, correct) == pytest.approx(((yes[:, None] > no) + 0.5 * (yes[:, None] == no)).mean())
    else:
        assert auroc(score, correct) is None


def test_the_calibration_error_has_bins_of_equal_width() -> None:
    """(0, 1/15] to (14/15, 1], each weighted by its rows; by hand for four rows."""
    score, correct = np.array([0.05, 0.06, 0.95, 1.0]), np.array([0.0, 1.0, 1.0, 1.0])
    fraction, _, accuracy = reliability(score, correct)
    assert (fraction.tolist(), accuracy.tolist()) == ([0.5, 0.5], [0.5, 1.0])
    assert calibration_error(score, correct) == pytest.approx(0.5 * (0.5 - 0.055) + 0.5 * (1 - 0.975))
    random = np.random.default_rng(1)
    score = random.beta(4, 1, 1000)
    correct = (random.random(1000) < score).astype(float)
    inside = [(low < score) & (score <= high) for low, high in pairwise(np.linspace(0, 1, 16))]
    expected = sum(abs((score[here] - correct[here]).sum()) for here in inside) / 1000
    assert calibration_error(score, correct) == pytest.approx(expected)


def test_risk_rises_from_the_most_confident_rows_to_the_error_rate() -> None:
    score, correct = np.array([0.9, 0.8, 0.7, 0.6]), np.array([1.0, 1.0, 0.0, 1.0])
    coverage, risk = risk_coverage(score, correct)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk.tolist() == pytest.approx([0, 0, 1 / 3, 1 / 4])
    assert aurc(score, correct) == pytest.approx(risk.mean())
    assert aurc(-score, correct) > aurc(score, correct)


def test_auroc_is_none_without_both_kinds_of_rows() -> None:
    rows = [row | {"score": 0.1 * i} for i, row in enumerate(make_rows([0.9] * 5))]
    metrics = confidence_metrics(rows)
    assert metrics["auroc_correct"] is None and metrics["auroc_negative"] is None and metrics["aurc"] == 0
    assert confidence_metrics(rows, [{"score": -1.0}])["auroc_negative"] == 1
