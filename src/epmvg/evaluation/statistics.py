"""Bootstrap intervals, paired differences and confidence metrics, with whole images as the unit of resampling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from epmvg.core.types import InputError
from epmvg.evaluation.metrics import Row, is_correct

Array = NDArray[np.float64]

BINS = 15  # of equal width, for the calibration error (Guo et al., On Calibration of Modern Neural Networks, 2017)
RESAMPLES = 2000
PERMUTATIONS = 9999  # the smallest p-value is 0.0001
MIN_IMAGES = 20  # with fewer images a percentile interval is unreliable


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Second minus first, in percentage points of a metric, on the phrases that both predicted."""

    points: float
    low: float  # 95 % interval
    high: float
    images: int
    phrases: int
    p: float  # of no difference, by flipping the signs of whole images' differences

    @property
    def significant(self) -> bool:
        """Whether the difference is significant at 5 %."""
        return self.p <= 0.05


def accuracy(rows: Sequence[Row]) -> float:
    """Return Acc@0.5 of prediction rows, in 0..1."""
    return float(np.mean([is_correct(row) for row in rows]))


def bootstrap(rows: Sequence[Row], *, value: Callable[[Row], float] = is_correct) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of a value over prediction rows; Acc@0.5 by default."""
    return mean_intervals([row["image"] for row in rows], np.array([[float(value(row))] for row in rows]))[0]


def mean_intervals(images: Sequence[str], values: Array) -> list[tuple[float, float]]:
    """Return the 95 % percentile-bootstrap interval of the mean of each column.

    Args:
        images: [n], the image of each row; a resample draws images with replacement, with all their rows.
        values: [n, M]; all columns share the resamples.
    """
    from scipy import stats  # takes a second to import

    image_index = _image_index(images)
    totals = np.stack([np.bincount(image_index, weights=column) for column in values.T])  # [M, images]
    counts = np.bincount(image_index)[None].astype(np.float64)
    if counts.size == 1:
        return [(mean, mean) for mean in (totals / counts)[:, 0].tolist()]
    low, high = stats.bootstrap(
        (totals, counts),
        lambda total, count, axis: total.sum(axis) / count.sum(axis),
        axis=-1,
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=RESAMPLES,
        batch=200,
        rng=0,
    ).confidence_interval
    return list(zip(low.tolist(), high.tolist(), strict=True))


def compare(rows_a: Sequence[Row], rows_b: Sequence[Row]) -> PairedDifference:
    """Compare two runs on the phrases that both predicted: the second's Acc@0.5 minus the first's.

    Rows are paired by `id`, phrase and target, or without an id by image name, phrase and target.

    Raises:
        InputError: the runs share no phrase.
    """
    pairs = pair(rows_a, rows_b)
    if not pairs:
        raise InputError("The runs have no phrase in common. Evaluate them on the same split.")
    gains = [100.0 * (is_correct(b) - is_correct(a)) for a, b in pairs]
    return difference([a["image"] for a, _ in pairs], gains)


def difference(images: Sequence[str], gains: Sequence[float]) -> PairedDifference:
    """Return the mean of paired gains [n], in percentage points, with its interval and p-value; `images` [n]."""
    ((low, high),) = mean_intervals(images, np.asarray(gains, np.float64)[:, None])
    p = _sign_flip_test(images, gains)
    return PairedDifference(float(np.mean(gains)), low, high, len(set(images)), len(gains), p)


def _sign_flip_test(images: Sequence[str], gains: Sequence[float]) -> float:
    """Return the p-value of a permutation test that flips the signs of whole images' differences.

    `scipy.stats.permutation_test` of type "samples" takes 0.55 s of CPU time for 1,500 images, this 0.05 s, per metric.
    """
    totals = np.bincount(_image_index(images), weights=np.asarray(gains, np.float64))
    totals = totals[totals != 0]
    random = np.random.default_rng(0)
    observed = abs(totals.sum()) * (1 - 1e-9)  # sums in another order may differ in the last digits
    extreme = 1
    for _ in range(PERMUTATIONS // 99):  # in batches that fit into memory
        signs = random.choice((-1.0, 1.0), (99, len(totals)))
        extreme += int((abs(signs @ totals) >= observed).sum())
    return extreme / (1 + PERMUTATIONS)


def pair(rows_a: Sequence[Row], rows_b: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Pair rows of the same phrase and target, in the order of the first; repetitions are paired in their order."""
    found = dict(zip(_keys(rows_b), rows_b, strict=True))
    return [(row, found[key]) for key, row in zip(_keys(rows_a), rows_a, strict=True) if key in found]


def _keys(rows: Sequence[Row]) -> list[tuple[object, ...]]:
    seen: Counter[tuple[object, ...]] = Counter()
    keys: list[tuple[object, ...]] = []
    for row in rows:
        target = tuple(round(float(edge), 2) for edge in row["target"])
        key = (row.get("id") or PurePath(row["image"]).name, row["phrase"], target)
        seen[key] += 1
        keys.append((*key, seen[key]))
    return keys


def _image_index(images: Sequence[str]) -> NDArray[np.int64]:
    return np.unique(np.asarray(images, dtype=object).astype(str), return_inverse=True)[1]


# Confidence


def confidence_metrics(rows: Sequence[Row], negatives: Sequence[Row] = ()) -> dict[str, float | None]:
    """Return how well confidence predicts correct boxes (IoU >= 0.5) and separates negative phrases.

    Args:
        rows: prediction rows.
        negatives: rows of negative phrases, with a score.

    Returns:
        ece (expected calibration error), aurc (area under the risk-coverage curve), auroc_correct (correct against
        wrong boxes) and auroc_negative (phrases of the image against negative ones); None without both of them.
    """
    score = np.array([row["score"] for row in rows], np.float64)
    negative = np.array([row["score"] for row in negatives], np.float64)
    correct = np.array([is_correct(row) for row in rows], np.float64)
    positive = np.repeat([1.0, 0.0], [len(score), len(negative)])
    return {
        "ece": calibration_error(score, correct),
        "aurc": aurc(score, correct),
        "auroc_correct": auroc(score, correct),
        "auroc_negative": auroc(np.concatenate([score, negative]), positive),
    }


def auroc(score: Array, positive: Array) -> float | None:
    """Return the area under the ROC curve of scores [n] for labels 0 or 1 [n]; None without both labels."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, score)) if len(np.unique(positive)) == 2 else None


def calibration_error(score: Array, correct: Array) -> float:
    """Return the expected calibration error of scores [n] for outcomes 0 or 1 [n]."""
    fraction, mean_score, mean_correct = reliability(score, correct)
    return float(fraction @ abs(mean_score - mean_correct))


def reliability(score: Array, correct: Array) -> tuple[Array, Array, Array]:
    """Return fraction of rows, mean score and accuracy of each of the `BINS` bins that is not empty."""
    number = np.clip(np.ceil(score * BINS) - 1, 0, BINS - 1).astype(np.int64)
    count, scores, hits = (np.bincount(number, values, BINS) for values in (np.ones(len(score)), score, correct))
    used = count > 0
    return count[used] / len(score), scores[used] / count[used], hits[used] / count[used]


def risk_coverage(score: Array, correct: Array) -> tuple[Array, Array]:
    """Return coverage and risk (fraction of wrong boxes) of keeping only the most confident rows, from few to all.

    Rows of equal score count together, so that their order does not matter.
    """
    _, index, count = np.unique(-score, return_inverse=True, return_counts=True)
    kept = count.cumsum()
    return kept / len(score), np.bincount(index, 1 - correct).cumsum() / kept


def aurc(score: Array, correct: Array) -> float:
    """Return the area under the risk-coverage curve, lower is better (Geifman and El-Yaniv, 2017)."""
    coverage, risk = risk_coverage(score, correct)
    return float(np.diff(coverage, prepend=0.0) @ risk)
