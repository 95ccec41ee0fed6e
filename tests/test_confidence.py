"""Figures of trust agree with their definitions, and calibration finds the mapping that made the data."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epmvg.core.calibration import (
    CONFIDENCE_FILE,
    Calibration,
    aurc,
    auroc,
    calibration_error,
    calibration_error_by_chance,
    fit_calibration,
    interval,
    mean_intervals,
    measure_trust,
    read_calibration,
    reliability,
    risk_coverage,
    threshold_for,
)
from epmvg.core.types import InputError

ROWS = st.lists(
    st.tuples(st.sampled_from([0.1, 0.25, 0.5, 0.8, 0.9]), st.booleans(), st.integers(1, 3)), min_size=2, max_size=25
)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.randoms(use_true_random=False))
def test_figures_depend_on_neither_order_nor_spelling(rows: list[tuple[float, bool, int]], dice: object) -> None:
    """Rows shuffled, or written out as often as they weigh, give the same figures; AUROC is the share of won pairs."""
    score, correct, often = (np.array(part, np.float64) for part in zip(*rows, strict=True))
    order = np.random.default_rng(0).permutation(len(rows))
    written = np.repeat(np.arange(len(rows)), often.astype(int))
    for figure in (calibration_error, aurc, auroc):
        weighed = figure(score, correct, weight=often)
        assert weighed == pytest.approx(figure(score[written], correct[written]), nan_ok=True)
        assert weighed == pytest.approx(figure(score[order], correct[order], weight=often[order]), nan_ok=True)
    yes, no = score[correct == 1], score[correct == 0]
    if len(yes) and len(no):
        won = (yes[:, None] > no).mean() + 0.5 * (yes[:, None] == no).mean()
        assert auroc(score, correct) == pytest.approx(won)


def test_the_calibration_error_is_the_field_s() -> None:
    """Bins of equal width, (0, 1/15] to (14/15, 1], each weighed by its rows; by hand for four rows."""
    score, correct = np.array([0.05, 0.06, 0.95, 1.0]), np.array([0.0, 1.0, 1.0, 1.0])
    bins = reliability(score, correct)
    assert [(one.share, one.accuracy) for one in bins] == [(0.5, 0.5), (0.5, 1.0)]
    assert calibration_error(score, correct) == pytest.approx(0.5 * (0.5 - 0.055) + 0.5 * (1 - 0.975))
    random = np.random.default_rng(1)
    score = random.beta(4, 1, 1000)
    correct = (random.random(1000) < score).astype(float)
    edges = np.linspace(0, 1, 16)
    inside = [(low < score) & (score <= high) for low, high in pairwise(edges)]
    expected = sum(abs((score[here] - correct[here]).sum()) for here in inside) / 1000
    assert calibration_error(score, correct) == pytest.approx(expected)


def test_the_error_by_chance_is_that_of_a_calibrated_model() -> None:
    """A perfectly calibrated model's error lies about it, for few rows and for many; a wrong one's far above."""
    random = np.random.default_rng(2)
    for n in (100, 2000):
        score = random.beta(3, 1.5, n)
        errors = [calibration_error(score, (random.random(n) < score).astype(float)) for _ in range(50)]
        chance = calibration_error_by_chance(score)
        assert chance == pytest.approx(np.mean(errors), rel=0.1)
        assert calibration_error(score**4, (random.random(n) < score).astype(float)) > 1.5 * chance


def test_risk_starts_at_the_surest_and_ends_at_the_error() -> None:
    score, correct = np.array([0.9, 0.8, 0.7, 0.6]), np.array([1.0, 1.0, 0.0, 1.0])
    coverage, risk = risk_coverage(score, correct)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk.tolist() == pytest.approx([0, 0, 1 / 3, 1 / 4])
    assert aurc(score, correct) == pytest.approx(risk.mean())
    assert aurc(-score, correct) > aurc(score, correct)


@pytest.mark.parametrize(("rising", "falling", "shift"), [(1.0, 1.0, 0.0), (0.4, 0.4, -0.8), (2.5, 0.6, 0.7)])
def test_calibration_undoes_what_was_done_to_probabilities(rising: float, falling: float, shift: float) -> None:
    random = np.random.default_rng(2)
    score = random.uniform(0.02, 0.98, 6000)
    truth = Calibration("beta", rising, falling, shift)(score)
    correct = (random.random(6000) < truth).astype(float)
    found, held_out = fit_calibration(score, correct, [str(i // 3) for i in range(6000)])
    assert np.abs(found(score) - truth).mean() < 0.02
    assert calibration_error(held_out, correct) < 0.03
    order = np.argsort(score)
    assert (np.diff(found(score)[order]) >= 0).all()


def test_a_score_that_says_nothing_becomes_the_base_rate() -> None:
    """Higher scores for wrong boxes: a mapping may flatten them, but never turn them round."""
    random = np.random.default_rng(3)
    correct = (random.random(900) < 0.3).astype(float)
    score = np.clip(0.8 - 0.3 * correct + 0.1 * random.standard_normal(900), 0, 1)
    found, held_out = fit_calibration(score, correct, [str(i) for i in range(900)])
    assert found.rising >= 0 and found.falling >= 0
    assert np.abs(held_out - correct.mean()).max() < 0.1


def test_the_threshold_keeps_its_promise_on_new_phrases() -> None:
    random = np.random.default_rng(4)
    passed = []
    for _ in range(400):
        absent, new = np.split(random.random(139), [39])
        threshold = threshold_for(0.1, absent)
        assert threshold is not None
        passed.append((new >= threshold).mean())
    assert 0.07 < np.mean(passed) <= 0.105
    assert threshold_for(0.1, np.full(8, 0.5)) is None
    tied = threshold_for(0.1, np.full(50, 0.5))
    assert tied is not None and tied > 0.5


def test_intervals_draw_images_not_rows() -> None:
    """Ten copies of each row in one image tell no more than one copy."""
    random = np.random.default_rng(5)
    score, correct = random.random(80), (random.random(80) < 0.6).astype(float)
    once = interval([str(i) for i in range(80)], lambda drawn: auroc(score, correct, weight=drawn))
    copies = np.repeat(np.arange(80), 10)
    often = interval([str(i) for i in copies], lambda drawn: auroc(score[copies], correct[copies], weight=drawn))
    assert often == pytest.approx(once, abs=1e-9)
    assert once[0] < auroc(score, correct) < once[1]


def test_means_have_the_intervals_of_any_figure() -> None:
    random = np.random.default_rng(6)
    images, values = [str(i) for i in random.integers(30, size=100)], random.random((100, 2))
    first, second = mean_intervals(images, values)
    assert first == pytest.approx(interval(images, lambda drawn: float(drawn @ values[:, 0] / drawn.sum())), abs=1e-12)
    assert second == pytest.approx(interval(images, lambda drawn: float(drawn @ values[:, 1] / drawn.sum())), abs=1e-12)


def test_trust_is_none_where_there_is_nothing_to_tell_apart() -> None:
    rows = [{"image": str(i), "score": 0.1 * i, "iou": 0.9} for i in range(5)]
    trust = measure_trust(rows)
    assert trust.auroc_correct is None and trust.auroc_belongs is None and trust.aurc.value == 0
    trust = measure_trust(rows, [{"image": "0", "score": -1.0}])
    assert trust.auroc_belongs is not None and trust.auroc_belongs.value == 1


def test_a_calibration_survives_its_file_and_a_torn_one_is_named(tmp_path: Path) -> None:
    assert read_calibration(tmp_path) is None
    made = Calibration("beta", 1.5, 0.25, -0.125, 0.1 + 0.2, 0.1, {"n": 3})
    (tmp_path / CONFIDENCE_FILE).write_text(made.dump())
    assert read_calibration(tmp_path) == made
    (tmp_path / CONFIDENCE_FILE).write_text(made.dump()[:40])
    with pytest.raises(InputError, match=r"confidence\.json cannot be read"):
        read_calibration(tmp_path)
