"""What a data set holds, counted from its annotations alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from epmvg.core.types import Sample
from epmvg.data.readers.jsonl import Skipped
from epmvg.data.registry import open_samples


def count_records(name: str, *, root: str | Path | None = None, split_key: str = "split") -> dict[str, Any]:
    """Count a data set by split, photos absent or not.

    Returns:
        data; splits: name -> images, phrases, boxes (different ones), words (mean of a phrase), longest (words),
        distinct (phrases, letter case apart), box_share (median area of a box in its image, null where sizes are not
        stated); skipped: reason -> rows that cannot be used; first_skipped: reason -> the first of them.

    Raises:
        InputError: as `open_records`.
    """
    skipped = Skipped()
    records = open_samples(name, split=None, root=root, split_key=split_key, skipped=skipped)
    splits: dict[str, list[Sample]] = {}
    for record in records:
        splits.setdefault(record.split, []).append(record)
    return {
        "data": name,
        "splits": {split: _counts(part) for split, part in splits.items()},
        "skipped": dict(skipped.counts),
        "first_skipped": dict(skipped.first),
    }


def _counts(records: Sequence[Sample]) -> dict[str, Any]:
    words = [len(record.phrase.split()) for record in records]
    boxes = {(record.image, record.box): record.size for record in records}
    shares = [
        (x1 - x0) * (y1 - y0) / (size[0] * size[1])
        for (_, (x0, y0, x1, y1)), size in boxes.items()
        if size and all(size)
    ]
    return {
        "images": len({record.image for record in records}),
        "phrases": len(records),
        "boxes": len(boxes),
        "words": round(fmean(words), 2),
        "longest": max(words),
        "distinct": len({record.phrase.lower() for record in records}),
        "box_share": round(median(shares), 4) if shares else None,
    }
