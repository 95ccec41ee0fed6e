"""Intervals and paired differences. Phrases of one image are alike, so images are what is drawn again, not phrases.

Percentile bootstrap over clusters: Davison and Hinkley, Bootstrap Methods and their Application, 1997, sec. 3.8.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from epmvg.core.calibration import mean_intervals
from epmvg.core.types import InputError
from epmvg.evaluation.metrics import Row, is_hit

FEWEST_IMAGES = 20
"""Below it a percentile interval says little: the draws repeat the few images there are."""

PERMUTATIONS = 9999  # the smallest p-value is 0.0001


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Second minus first, in percentage points of a figure, on the phrases both answered."""

    points: float
    low: float  # 95 % interval
    high: float
    images: int
    phrases: int
    p: float  # of no difference, signs of whole images' gains drawn anew

    @property
    def clear(self) -> bool:
        """Whether the difference is significant at 5 %, by the permutation test."""
        return self.p <= 0.05


def accuracy(rows: Sequence[Row]) -> float:
    """Acc@0.5 of rows, in 0..1."""
    return float(np.mean([is_hit(row) for row in rows]))


def mean_iou(rows: Sequence[Row]) -> float:
    """Mean IoU of rows, in 0..1."""
    return float(np.mean([row["iou"] for row in rows]))


def bootstrap(rows: Sequence[Row], *, score: Callable[[Row], float] = is_hit, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of a mean score over rows of predictions, images drawn with replacement.

    Args:
        rows: rows of predictions, any number an image.
        score: what is averaged; by default the hit of Acc@0.5, in 0..1.
        seed: of the draws.

    Raises:
        InputError: there are no rows.
    """
    if not rows:
        raise InputError("There are no predictions to score: evaluate on a split that has rows.")
    return _interval([row["image"] for row in rows], [float(score(row)) for row in rows], seed)


def compare(rows_a: Sequence[Row], rows_b: Sequence[Row], *, seed: int = 0) -> PairedDifference:
    """Compare two runs on the phrases that both answered: the second's Acc@0.5 minus the first's.

    Rows meet by `id`, phrase and target, or where there is no id by the image's name, phrase and target.

    Raises:
        InputError: the runs share no phrase.
    """
    pairs = pair(rows_a, rows_b)
    if not pairs:
        raise InputError("The runs have no phrase in common: evaluate them on the same split.")
    return difference([a["image"] for a, _ in pairs], [100.0 * (is_hit(b) - is_hit(a)) for a, b in pairs], seed=seed)


def difference(images: Sequence[str], gains: Sequence[float], *, seed: int = 0) -> PairedDifference:
    """Return the mean of phrases' gains, with its interval and the p-value of none.

    Args:
        images: [n], the image of each phrase.
        gains: [n], second minus first, in percentage points.
        seed: of the draws.
    """
    low, high = _interval(images, gains, seed)
    p = _permutation(images, gains, seed)
    return PairedDifference(float(np.mean(gains)), low, high, len(set(images)), len(gains), p)


def _permutation(images: Sequence[str], gains: Sequence[float], seed: int) -> float:
    """Share of sign changes that lead at least as far from zero; the observed one counts among them.

    Were both the same, an image's gain might as well have the other sign. Phrases of one image turn together.
    """
    image_index = np.unique(np.asarray(images, dtype=object).astype(str), return_inverse=True)[1]
    total = np.bincount(image_index, weights=np.asarray(gains, np.float64))
    total = total[total != 0]
    random = np.random.default_rng(seed)
    reach = abs(total.sum()) * (1 - 1e-9)  # sums of other order may differ in the last digits
    further = 1
    for _ in range(PERMUTATIONS // 99):  # 99 at a time: enough to be fast, few enough to fit
        signs = random.choice((-1.0, 1.0), (99, len(total)))
        further += int((abs(signs @ total) >= reach).sum())
    return further / (1 + PERMUTATIONS)


def pair(rows_a: Sequence[Row], rows_b: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Match rows that ask the same thing, in the order of the first; a repeated question meets its repetition."""
    found = dict(zip(_keys(rows_b), rows_b, strict=True))
    return [(row, found[key]) for key, row in zip(_keys(rows_a), rows_a, strict=True) if key in found]


def _keys(rows: Sequence[Row]) -> list[tuple[object, ...]]:
    seen: Counter[tuple[object, ...]] = Counter()
    keys: list[tuple[object, ...]] = []
    for row in rows:
        target = tuple(round(float(edge), 2) for edge in row["target"])
        question = (row.get("id") or PurePath(row["image"]).name, row["phrase"], target)
        seen[question] += 1
        keys.append((*question, seen[question]))
    return keys


def _interval(images: Sequence[str], values: Sequence[float], seed: int) -> tuple[float, float]:
    """Percentiles 2.5 and 97.5 of the mean value over draws of whole images."""
    return mean_intervals(images, np.asarray(values, np.float64)[:, None], seed=seed)[0]
