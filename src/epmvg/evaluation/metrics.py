"""Metrics of prediction rows: accuracy at IoU thresholds and mean IoU, also by slices of a split.

A prediction row is a mapping with image, phrase, box, target and iou. `targets` are several boxes of which any counts;
a box of None is a miss.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from epmvg.core.geometry import Clip
from epmvg.core.types import InputError

Row = Mapping[str, Any]

IOU_THRESHOLDS = {"acc25": 0.25, "acc50": 0.5, "acc75": 0.75, "acc90": 0.9}
METRICS = (*IOU_THRESHOLDS, "macc", "miou")

_PROTOCOL = "IoU >= 0.5 in pixels of the original image, target not clipped, prediction clipped to the "
PROTOCOLS: dict[Clip, str] = {
    "image": f"{_PROTOCOL}image",
    "canvas": f"{_PROTOCOL}square network input, as TransVG evaluates",
}


@dataclass(frozen=True, slots=True)
class Metrics:
    """Metrics over n phrases, in 0..1."""

    n: int
    acc50: float
    acc25: float
    acc75: float
    acc90: float
    macc: float  # mean of the four accuracies
    miou: float

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Metrics:
        """Compute the metrics of prediction rows; sums are exact, so the order of rows does not matter.

        Raises:
            InputError: there are no rows.
        """
        if not rows:
            raise InputError("There are no predictions to score. Give those of at least one phrase.")
        return cls(len(rows), **{name: math.fsum(v) / len(rows) for name, v in row_metrics(rows).items()})


def row_metrics(rows: Sequence[Row]) -> dict[str, NDArray[np.float64]]:
    """Return the value of each row in each metric, [n] in 0..1, of which the metric is the mean."""
    hits = {
        name: np.array([is_correct(row, threshold) for row in rows], float)
        for name, threshold in IOU_THRESHOLDS.items()
    }
    return hits | {
        "macc": sum(hits.values(), np.zeros(len(rows))) / len(hits),
        "miou": np.array([row["iou"] for row in rows], float),
    }


def is_correct(row: Row, threshold: float = IOU_THRESHOLDS["acc50"]) -> bool:
    """Return whether the IoU of a row reaches a threshold."""
    return float(row["iou"]) >= threshold


def data_sha256(rows: Sequence[Row]) -> str:
    """Return a hash of image names, phrases and targets, in any order: not of predictions, ids or folders of images."""
    samples = sorted(
        json.dumps([PurePath(row["image"]).name, row["phrase"], sorted(_floats(box) for box in boxes)])
        for row in rows
        for boxes in [row.get("targets") or [row["target"]]]
    )
    return hashlib.sha256("\n".join(samples).encode()).hexdigest()


def _floats(box: Sequence[float]) -> list[float]:
    return [float(edge) + 0.0 for edge in box]  # -0.0 is 0.0


# Slices

MAX_NAMES = 12  # of a slicing; the rest is rare

COLOR_WORDS = (
    r"black|white|gr[ae]y|red|blue|green|yellow|orange|brown|pink|purple|violet|tan|beige|turquoise|maroon|navy|teal|"
    r"gold(en)?|silver|blonde?|colou?rful|multi-?colou?red"
)
SIDE_WORDS = r"(left|right|top|bottom|upper|lower|front|back)(most|hand)?|middle|mid|cent(er|re|ral)|corner|edge|side"
RELATION_WORDS = (
    r"next to|besides?|near(est|by)?|clos(e|er|est) to|behind|in front of|between|under(neath)?|beneath|above|below|"
    r"on top of|(left|right) of|against|around|facing|holding|wearing|carrying|riding|touching|talking to|looking at"
)
LENGTHS = {2: "1 or 2 words", 4: "3 or 4 words", 8: "5 to 8 words", math.inf: "9 words or more"}
AREAS = {32**2: "small (< 32² px)", 96**2: "medium (< 96² px)", math.inf: "large"}  # COCO's, in original pixels


class Slicing(NamedTuple):
    """A division of rows into named slices, which may overlap."""

    names_of: Callable[[Row], Sequence[str]]
    order: tuple[str, ...] = ()  # of the names; by number of rows where empty


def slices(rows: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """Return the rows of each slice, by title of the slicing and name, for slicings with at least two slices."""
    divided = {}
    for title, slicing in SLICINGS.items():
        parts: dict[str, list[Row]] = {}
        for row in rows:
            for name in dict.fromkeys(slicing.names_of(row)):
                parts.setdefault(name, []).append(row)
        names = slicing.order or sorted(parts, key=lambda name: (-len(parts[name]), name))[:MAX_NAMES]
        if len(parts) > 1:
            divided[title] = {name: parts[name] for name in names if name in parts}
    return divided


def _data_set(row: Row) -> list[str]:
    return [f"{row['dataset']} {row.get('split', '')}".strip()] if row.get("dataset") else []


def _values(key: str) -> Callable[[Row], list[str]]:
    def names_of(row: Row) -> list[str]:
        value = row.get(key)
        return [name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str) and name]

    return names_of


def _words(pattern: str) -> Slicing:
    known = re.compile(rf"\b({pattern})\b", re.IGNORECASE)
    return Slicing(lambda row: ["with" if known.search(row["phrase"]) else "without"], ("with", "without"))


def _length(row: Row) -> list[str]:
    words = len(row["phrase"].split())
    return [next(name for longest, name in LENGTHS.items() if words <= longest)]


def _area(row: Row) -> list[str]:
    x0, y0, x1, y1 = row["target"]
    return [next(name for bound, name in AREAS.items() if (x1 - x0) * (y1 - y0) < bound)]


SLICINGS = {
    "Data set": Slicing(_data_set),
    "Kind of phrase": Slicing(_values("kind")),
    "Type of object": Slicing(_values("types")),
    "Side words": _words(SIDE_WORDS),
    "Color words": _words(COLOR_WORDS),
    "Relation words": _words(RELATION_WORDS),
    "Length of the phrase": Slicing(_length, tuple(LENGTHS.values())),
    "Truncation": Slicing(lambda row: ["truncated" if row.get("truncated") else "whole"], ("whole", "truncated")),
    "Size of the target": Slicing(_area, tuple(AREAS.values())),
}
"""By title."""
