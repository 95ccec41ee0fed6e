"""Turns rows of answers into the figures of a robustness report; intervals draw the images anew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from epmvg.confidence import Calibration, auroc, interval
from epmvg.metrics import is_hit
from epmvg.reporting.runs import Row
from epmvg.reporting.statistics import accuracy, bootstrap, compare, pair
from epmvg.stress.kind import Expects, Stress

SAME_BOX = {"same": 0.5, "other": 0.5, "identical": 1.0}
"""The IoU from which on two answers count as one, by what a stress expects."""
CLEAN_KEPT = 0.9  # of the clean phrases, where no threshold is stored


def has_changed(row: Row, expects: Expects) -> bool:
    """Say whether an answer under stress is another box than the clean one."""
    return float(row["agreement"]) < SAME_BOX[expects]


def clean_figures(clean: Sequence[Row]) -> dict[str, Any]:
    """Score the questions as they are."""
    images = len({row["image"] for row in clean})
    return {"n": len(clean), "images": images, "acc50": accuracy(clean), "acc50_interval": list(bootstrap(clean))}


def stress_figures(stress: Stress[Any, Any], kind: str, rows: Sequence[Row], clean: Sequence[Row]) -> dict[str, Any]:
    """Score one stress against the clean answers to the same phrases; say why where it left every phrase out."""
    said: dict[str, Any] = {"name": stress.name, "kind": kind, "about": stress.about, "expects": stress.expects}
    said |= {"n": len(rows), "left_out": len(clean) - len(rows)}
    if not rows:
        return said | {"why": f"none of the {len(clean):,} has {stress.needs}"}
    difference = compare(clean, rows)
    changed = partial(has_changed, expects=stress.expects)
    return said | {
        "cut": sum(row["cut"] for row in rows),
        "clean_acc50": accuracy([before for before, _ in pair(clean, rows)]),
        "acc50": accuracy(rows),
        "acc50_interval": list(bootstrap(rows)),
        "difference": {"points": difference.points, "low": difference.low, "high": difference.high},
        "changed": float(np.mean([changed(row) for row in rows])),
        "changed_interval": list(bootstrap(rows, score=changed)),
        "agreement": float(np.mean([row["agreement"] for row in rows])),
    }


def absent_figures(clean: Sequence[Row], absent: Sequence[Row], calibration: Calibration | None) -> dict[str, Any]:
    """Say how well a lowest score refuses phrases that name nothing in their photo.

    The threshold is the run's own; where none is stored, the one that this share of the clean phrases reaches.
    """
    said: dict[str, Any] = {"n": len(absent)}
    if not absent:
        return said | {"why": "no phrase is absent from another photo, or none was asked for"}
    score = np.array([row["score"] for row in (*clean, *absent)], np.float64)
    belongs = np.arange(len(score)) < len(clean)
    if len(np.unique(score)) == 1:
        return said | {"why": "the run gives every box the same score: it can refuse nothing"}
    stored = calibration.threshold if calibration is not None else None
    threshold = stored if stored is not None else float(np.quantile(score[belongs], 1 - CLEAN_KEPT, method="lower"))
    images = [row["image"] for row in (*clean, *absent)]
    truth = belongs.astype(np.float64)
    return said | {
        "threshold": threshold,
        "threshold_from": "confidence.json" if stored is not None else f"{CLEAN_KEPT:.0%} of the clean phrases",
        "refused": float((score[~belongs] < threshold).mean()),
        "refused_interval": list(bootstrap(absent, score=lambda row: row["score"] < threshold)),
        "clean_refused": float((score[belongs] < threshold).mean()),
        "auroc": auroc(score, truth),
        "auroc_interval": list(interval(images, lambda drawn: auroc(score, truth, drawn))),
    }


def worst(stress: Stress[Any, Any], rows: Sequence[Row], clean: Sequence[Row], count: int) -> list[tuple[Row, Row]]:
    """Choose pairs (clean, stressed) to look at, one a photo: right before and wrong now, by the IoU lost.

    Where the box should have moved, those that were right before and stay where they are.
    """
    pairs = [(before, now) for before, now in pair(clean, rows) if is_hit(before)]
    if stress.expects == "other":
        pairs = [(before, now) for before, now in pairs if not has_changed(now, stress.expects)]
        pairs.sort(key=lambda both: -both[1]["agreement"])
    else:
        pairs = [(before, now) for before, now in pairs if not is_hit(now)]
        pairs.sort(key=lambda both: both[1]["iou"] - both[0]["iou"])
    return _one_a_photo(pairs)[:count]


def surest(absent: Iterable[Row], count: int) -> list[Row]:
    """Choose the absent phrases that were answered with the highest scores, one a photo."""
    ordered = sorted(absent, key=lambda row: -row["score"])
    return [row for row, _ in _one_a_photo([(row, row) for row in ordered])[:count]]


def _one_a_photo(pairs: Iterable[tuple[Row, Row]]) -> list[tuple[Row, Row]]:
    first: dict[str, tuple[Row, Row]] = {}
    for both in pairs:
        first.setdefault(both[0]["image"], both)
    return list(first.values())
