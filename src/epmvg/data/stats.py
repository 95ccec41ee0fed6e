"""What a data set holds, counted from its annotations alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from epmvg.core.types import Sample
from epmvg.data.readers.annotations import Skipped
from epmvg.data.registry import open_samples


def count_samples(name: str, *, root: str | Path | None = None) -> dict[str, Any]:
    """Count a data set by split, whether its images exist or not.

    Returns:
        data; splits: name -> images, phrases, boxes (different ones), words (mean of a phrase), longest (words),
        distinct (phrases, letter case apart), box_fraction (median area of a box in its image, null where sizes are not
        stated); skipped: reason -> annotations that cannot be used; first_skipped: reason -> the first of them.

    Raises:
        InputError: as `open_samples`.
    """
    skipped = Skipped()
    splits: dict[str, list[Sample]] = {}
    for sample in open_samples(name, split=None, root=root, skipped=skipped):
        splits.setdefault(sample.split, []).append(sample)
    counts = {split: _counts(samples) for split, samples in splits.items()}
    return {"data": name, "splits": counts} | skipped.as_dict()


def _counts(samples: Sequence[Sample]) -> dict[str, Any]:
    words = [len(sample.phrase.split()) for sample in samples]
    boxes = {(sample.image, sample.box): sample.size for sample in samples}
    fractions = [
        (x1 - x0) * (y1 - y0) / (size[0] * size[1])
        for (_, (x0, y0, x1, y1)), size in boxes.items()
        if size and all(size)
    ]
    return {
        "images": len({sample.image for sample in samples}),
        "phrases": len(samples),
        "boxes": len(boxes),
        "words": round(fmean(words), 2),
        "longest": max(words),
        "distinct": len({sample.phrase.lower() for sample in samples}),
        "box_fraction": round(median(fractions), 4) if fractions else None,
    }
