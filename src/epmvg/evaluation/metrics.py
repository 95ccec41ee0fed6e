"""What a row of predictions counts in each figure of an evaluation, and the stamp that says what was asked and how.

A row is a mapping with image, phrase, box, target and iou; `targets`, where it has them, are several boxes of which
any counts, and a box of None is a miss.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from epmvg.core.types import InputError
from epmvg.core.version import __version__

Row = Mapping[str, Any]

BOUNDS = {"acc25": 0.25, "acc50": 0.5, "acc75": 0.75, "acc90": 0.9}
FIGURES = (*BOUNDS, "macc", "miou", "centre")

Targets = Literal["rows", "merged", "any"]
TARGETS: dict[Targets, str] = {
    "rows": "each row's own box",
    "merged": "the union of a phrase's boxes",
    "any": "that box of a phrase which overlaps most",
}
"""What the target of a phrase with several boxes is."""

BOXES = "x0, y0, x1, y1 as float in pixels of the original upright image"


@dataclass(frozen=True, slots=True)
class Scores:
    """Figures over n phrases; shares in 0..1."""

    n: int
    acc50: float
    acc25: float
    acc75: float
    acc90: float
    macc: float  # mean of the four accuracies
    miou: float
    centre: float  # the predicted box's centre lies in the true box

    @classmethod
    def of(cls, rows: Sequence[Row], *, strict: bool = False) -> Scores:
        """Score rows of predictions; the sums are exact, so their order does not matter.

        Args:
            strict: count IoU > bound instead of IoU >= bound.

        Raises:
            InputError: there are no rows.
        """
        if not rows:
            raise InputError("There are no rows to score: give predictions of at least one phrase.")
        return cls(len(rows), **{name: math.fsum(part) / len(rows) for name, part in parts_of(rows, strict).items()})


def parts_of(rows: Sequence[Row], strict: bool = False) -> dict[str, NDArray[np.float64]]:
    """Return what each row counts in each figure, [n] in 0..1; a figure is the mean of its own."""
    parts = {name: np.array([is_hit(row, bound, strict) for row in rows], float) for name, bound in BOUNDS.items()}
    return parts | {
        "macc": sum(parts.values(), np.zeros(len(rows))) / len(parts),
        "miou": np.array([row["iou"] for row in rows], float),
        "centre": np.array([finds_centre(row) for row in rows], float),
    }


def is_hit(row: Row, bound: float = BOUNDS["acc50"], strict: bool = False) -> bool:
    """Say whether a row counts in the accuracy at a bound: IoU >= bound, or > where that is asked for."""
    return float(row["iou"]) > bound if strict else float(row["iou"]) >= bound


def finds_centre(row: Row) -> bool:
    """Say whether the centre of a row's box lies in its target, the edge included; an inverted box has none."""
    if row["box"] is None:
        return False
    x0, y0, x1, y1 = row["box"]
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    there = any(a <= x <= c and b <= y <= d for a, b, c, d in row.get("targets") or [row["target"]])
    return bool(there and x0 <= x1 and y0 <= y1)


def stamp(rows: Sequence[Row], *, strict: bool = False, targets: Targets = "rows") -> dict[str, Any]:
    """Say what was asked and how it was judged; the same for the same rows in any order, whatever was answered.

    The hash is of image names, phrases and targets: not of answers, ids or the folders that the images lie in.
    """
    questions = sorted(
        json.dumps([PurePath(row["image"]).name, row["phrase"], sorted(_floats(box) for box in boxes)])
        for row in rows
        for boxes in [row.get("targets") or [row["target"]]]
    )
    return {
        "data_sha256": hashlib.sha256("\n".join(questions).encode()).hexdigest(),
        "images": len({row["image"] for row in rows}),
        "phrases": len(rows),
        "correct": f"IoU {'>' if strict else '>='} bound",
        "boxes": BOXES,
        "targets": TARGETS[targets],
        "epmvg": __version__,
    }


def _floats(box: Sequence[float]) -> list[float]:
    return [float(edge) + 0.0 for edge in box]  # -0.0 is 0.0
