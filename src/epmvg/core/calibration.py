"""What a score is worth: calibration to a probability, and the figures that say how far it can be trusted.

Scores are in 0..1, outcomes are True where the box is correct. Of rows with equal scores none comes first: figures that
sort give each of them the mean outcome of all. File format and figures: docs/confidence.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from epmvg.core.types import InputError

Array = NDArray[np.float64]
Method = Literal["none", "temperature", "platt", "beta"]

CONFIDENCE_FILE = "confidence.json"
BINS = 15  # equally wide, of the calibration error (Guo et al., On Calibration of Modern Neural Networks, 2017)
DRAWS = 2000  # the ends of a 95 % interval then rest on 50 draws each
FOLDS = 5
_EDGE = 1e-4  # scores are kept this far from 0 and 1, where their logarithm ends


@dataclass(frozen=True, slots=True)
class Calibration:
    """From a raw score s to a probability: sigmoid(rising ln s - falling ln(1 - s) + shift).

    That is beta calibration (Kull et al., 2017); equal slopes make it Platt's, and no shift besides makes it
    temperature scaling.
    """

    method: Method
    rising: float
    falling: float
    shift: float
    threshold: float | None = None  # on the probability
    false_alarms: float | None = None  # share of absent phrases that may reach the threshold
    fitted: dict[str, Any] | None = None  # on which data, and how it did there
    weights: str | None = None  # SHA-256 of the weights whose scores it maps

    @property
    def mapping(self) -> list[float]:
        """The three numbers of the mapping."""
        return [self.rising, self.falling, self.shift]

    @property
    def changes_scores(self) -> bool:
        """Whether scores become probabilities; without a mapping they stay raw, and only the threshold is new."""
        return self.method != "none"

    def __call__(self, score: Array) -> Array:
        """Turn raw scores [n] into probabilities [n]."""
        features = _features(score)
        return _sigmoid(features @ np.array(self.mapping))

    def dump(self) -> str:
        """Return it as JSON that `read_calibration` reads back."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_calibration(folder: Path) -> Calibration | None:
    """Read a folder's calibration, None if there is none.

    Raises:
        InputError: the file is torn or of another kind.
    """
    file = folder / CONFIDENCE_FILE
    if not file.exists():
        return None
    try:
        said = Calibration(**json.loads(file.read_text(encoding="utf-8")))
        said(np.array([0.5]))
    except (ValueError, TypeError) as error:
        raise InputError(f"{file} cannot be read: delete it, or run `epmvg calibrate {folder}` again.") from error
    return said


def fit_calibration(score: Array, correct: Array, images: Sequence[str], *, seed: int = 0) -> tuple[Calibration, Array]:
    """Choose a calibration by cross-validation and fit it to all rows.

    Args:
        score: raw scores [n]; correct: 0 or 1 [n].
        images: [n], the image of each row; rows of one image stay in one fold.
        seed: of the folds.

    Returns:
        The calibration of the lowest log loss on rows it was not fitted to, and its probabilities [n] of those.
    """
    fold = _owner(images)
    order = np.random.default_rng(seed).permutation(int(fold.max()) + 1)
    fold = order[fold] % FOLDS
    best: tuple[float, Method, Array] | None = None
    for method in ("none", "temperature", "platt", "beta"):
        held_out = np.empty(len(score))
        for number in range(FOLDS):
            here = fold == number
            if here.any() and not here.all():
                held_out[here] = _fit(method, score[~here], correct[~here])(score[here])
            else:  # one image: nothing can be held out
                held_out[here] = _fit(method, score[here], correct[here])(score[here])
        loss = log_loss(held_out, correct)
        if best is None or loss < best[0]:
            best = loss, method, held_out
    assert best is not None
    return _fit(best[1], score, correct), best[2]


_TIES: dict[Method, Array] = {  # which of rising, falling and shift each method's own numbers stand for
    "temperature": np.array([[1.0], [1.0], [0.0]]),
    "platt": np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]),
    "beta": np.eye(3),
}


def _fit(method: Method, score: Array, correct: Array) -> Calibration:
    """Fit one method by the log loss; a slope below 0, which would turn scores round, becomes 0 (Kull et al.)."""
    if method == "none":
        return Calibration("none", 1.0, 1.0, 0.0)
    features, tie = _features(score), _TIES[method]
    numbers = tie @ _logistic(features @ tie, correct, _neutral(tie))
    while (turned := numbers[:2] < 0).any():
        tie = tie[:, ~tie[:2][turned].any(0)]
        numbers = tie @ _logistic(features @ tie, correct, _neutral(tie))
    rising, falling, shift = numbers.tolist()
    return Calibration(method, rising, falling, shift)


def _neutral(tie: Array) -> Array:
    """A method's numbers that leave scores as they are."""
    return cast(Array, tie.T @ np.array([1.0, 1.0, 0.0]) / tie.sum(0))


def _logistic(features: Array, correct: Array, start: Array) -> Array:
    """Weights of a logistic regression by Newton's steps, with a ridge towards `start` that fades with more rows."""
    weight = start.copy()
    for _ in range(50):
        probability = _sigmoid(features @ weight)
        slope = features.T @ (probability - correct) + (weight - start)
        curvature = (features.T * (probability * (1 - probability))) @ features + np.eye(len(weight))
        step = np.linalg.solve(curvature, slope)
        longest = np.abs(step).max(initial=0.0)
        weight -= step * min(1.0, 2.0 / max(longest, 1e-12))  # far from the end, Newton overshoots
        if longest < 1e-9:
            break
    return weight


def _features(score: Array) -> Array:
    inner = np.clip(np.asarray(score, np.float64), _EDGE, 1 - _EDGE)
    return np.stack([np.log(inner), -np.log1p(-inner), np.ones_like(inner)], -1)


def _sigmoid(value: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * value))


def log_loss(probability: Array, correct: Array) -> float:
    """Mean negative log-likelihood of outcomes."""
    inner = np.clip(probability, _EDGE, 1 - _EDGE)
    return float(-np.mean(correct * np.log(inner) + (1 - correct) * np.log1p(-inner)))


def threshold_for(false_alarms: float, absent: Array) -> float | None:
    """Return the lowest score that a new absent phrase reaches with a chance of at most `false_alarms`.

    The bound holds for phrases drawn like those of `absent` [n], whatever their distribution (split conformal
    prediction: Vovk et al., Algorithmic Learning in a Random World, 2005); None where n is too small for it.
    """
    allowed = math.floor(false_alarms * (len(absent) + 1))  # of n + 1 exchangeable scores
    if allowed < 1:
        return None
    return float(np.nextafter(np.sort(absent)[-allowed], 2.0)) if allowed <= len(absent) else 0.0


def calibration_error(score: Array, correct: Array, bins: int = BINS, weight: Array | None = None) -> float:
    """Expected calibration error over bins of equal width: mean |score - accuracy|, weighted by rows [n]."""
    reliable = reliability(score, correct, bins, weight)
    return float(sum(bin_.share * abs(bin_.score - bin_.accuracy) for bin_ in reliable))


def calibration_error_by_chance(score: Array, *, draws: int = 200, seed: int = 0) -> float:
    """Return the mean calibration error of a perfectly calibrated model with these scores [n].

    It is above 0 and falls with n: outcomes are drawn with the scores as their probabilities.
    """
    random = np.random.default_rng(seed)
    drawn = [calibration_error(score, (random.random(len(score)) < score).astype(np.float64)) for _ in range(draws)]
    return float(np.mean(drawn))


@dataclass(frozen=True, slots=True)
class Bin:
    """Rows whose scores lie in one bin: their share of all, mean score and accuracy."""

    share: float
    score: float
    accuracy: float


def reliability(score: Array, correct: Array, bins: int = BINS, weight: Array | None = None) -> list[Bin]:
    """Sort rows into bins of equal width by score, each with its upper edge; empty bins are left out."""
    mass = np.ones(len(score)) if weight is None else weight
    number = np.clip(np.ceil(np.asarray(score) * bins) - 1, 0, bins - 1).astype(np.int64)
    total, scores, outcomes = (np.bincount(number, mass * part, bins) for part in (1.0, score, correct))
    return [
        Bin(float(total[i] / total.sum()), float(scores[i] / total[i]), float(outcomes[i] / total[i]))
        for i in total.nonzero()[0]
    ]


def risk_coverage(score: Array, correct: Array, weight: Array | None = None) -> tuple[Array, Array]:
    """Answer only the surest rows: share answered and share of these that is wrong, surest first."""
    mass = np.ones(len(score)) if weight is None else weight
    _, outcome, mass = (part[::-1] for part in _pooled(score, correct, mass))
    covered = mass.cumsum()
    return covered / covered[-1], ((1 - outcome) * mass).cumsum() / covered


def aurc(score: Array, correct: Array, weight: Array | None = None) -> float:
    """Area under the risk-coverage curve, lower is better (Geifman and El-Yaniv, 2017): mean risk over coverage."""
    coverage, risk = risk_coverage(score, correct, weight)
    return float(np.diff(coverage, prepend=0.0) @ risk)


def auroc(score: Array, positive: Array, weight: Array | None = None) -> float:
    """Chance that a positive row scores higher than a negative one, ties half; nan without both kinds."""
    mass = np.ones(len(score)) if weight is None else weight
    _, share, mass = _pooled(score, positive, mass)
    yes, no = share * mass, (1 - share) * mass
    below = no.cumsum() - no
    pairs = yes.sum() * no.sum()
    return float((yes * (below + 0.5 * no)).sum() / pairs) if pairs else float("nan")


def _pooled(score: Array, outcome: Array, mass: Array) -> tuple[Array, Array, Array]:
    """Pool rows of equal score, lowest first: scores, mean outcomes and masses; pools without mass are left out."""
    value, image_index = np.unique(score, return_inverse=True)
    total = np.bincount(image_index, weights=mass).astype(np.float64)
    happened = np.bincount(image_index, weights=mass * outcome)
    there = total > 0
    return value[there], happened[there] / total[there], total[there]


def interval(images: Sequence[str], figure: Callable[[Array], float], *, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of a figure, images drawn with replacement: rows of one image are alike.

    Args:
        images: [n], the image of each row.
        figure: called with how often each row was drawn, float [n].
        seed: of the draws.
    """
    drawn = np.array([figure(weight) for weight in _draws(images, seed)])
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def mean_intervals(images: Sequence[str], values: Array, *, seed: int = 0) -> list[tuple[float, float]]:
    """Return the 95 % intervals of the means of columns [n, F], images drawn as `interval` draws them, but sooner."""
    image_index = _owner(images)
    total = np.stack([np.bincount(image_index, weights=column) for column in values.T], -1)  # [I, F]
    size = np.bincount(image_index)
    drawn = np.array([times @ total / (times @ size) for times in _drawn_images(len(size), seed)])
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0).tolist()
    return list(zip(low, high, strict=True))


def _draws(images: Sequence[str], seed: int) -> Iterator[Array]:
    image_index = _owner(images)
    for times in _drawn_images(int(image_index.max()) + 1, seed):
        yield times[image_index].astype(np.float64)


def _drawn_images(count: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield how often each of `count` images was drawn, once a draw."""
    random = np.random.default_rng(seed)
    for _ in range(DRAWS):
        yield np.bincount(random.integers(count, size=count), minlength=count)


def _owner(images: Sequence[str]) -> NDArray[np.int64]:
    return np.unique(np.asarray(images, dtype=object).astype(str), return_inverse=True)[1]


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure with its 95 % interval, where it has one."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Trust:
    """How far scores can be trusted."""

    ece: Figure  # without an interval: redrawn rows can only add to a binned error
    ece_by_chance: float  # of a perfectly calibrated model with these scores
    aurc: Figure
    auroc_correct: Figure | None  # score against "the box is correct"; None where all are, or none is
    auroc_belongs: Figure | None  # score against "the phrase belongs to this image"; None where none was asked
    absent: int  # phrases asked of images they do not belong to


def measure_trust(rows: Sequence[Any], absent: Sequence[Any] = ()) -> Trust:
    """Judge the scores of rows of predictions, and of rows of phrases asked of images they do not belong to.

    Args:
        rows: mappings with image, score and iou; correct is IoU >= 0.5.
        absent: mappings with image and score.
    """
    score = np.array([row["score"] for row in rows], np.float64)
    correct = np.array([row["iou"] >= 0.5 for row in rows], np.float64)
    images = [str(row["image"]) for row in rows]
    every = np.concatenate([score, [row["score"] for row in absent]])
    belongs = np.concatenate([np.ones(len(rows)), np.zeros(len(absent))])
    all_images = images + [str(row["image"]) for row in absent]

    def iou_box(figure: Callable[..., float], score: Array, outcome: Array, images: list[str]) -> Figure | None:
        value = figure(score, outcome)
        if np.isnan(value):
            return None
        return Figure(value, *interval(images, lambda weight: figure(score, outcome, weight=weight)))

    return Trust(
        ece=Figure(calibration_error(score, correct), None, None),
        ece_by_chance=calibration_error_by_chance(score),
        aurc=cast(Figure, iou_box(aurc, score, correct, images)),
        auroc_correct=iou_box(auroc, score, correct, images),
        auroc_belongs=iou_box(auroc, every, belongs, all_images),
        absent=len(absent),
    )
