"""Find boxes that are invalid, outside of their image, or in another convention than they are read in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from epmvg.core.types import Box, Sample
from epmvg.data.conventions import TOLERANCE, Size, detect_convention, fits
from epmvg.data.validation.images import ImageInfo
from epmvg.data.validation.issues import Issue, LocatedSample


def box_issues(located: Sequence[LocatedSample], images: Mapping[Path, ImageInfo]) -> Iterator[Issue]:
    """Check boxes; if all are in another convention, that is the only issue."""
    sized = [(where, sample, images[sample.image].size or sample.size) for where, sample in located]
    detected = detect_convention((sample.box, size) for _, sample, size in sized if all(map(math.isfinite, sample.box)))
    if detected is not None:
        yield Issue("box-convention", note=detected)
        return
    unturned = _unturned_images(located, images)
    for image, note in unturned.items():
        yield Issue("image-turned", note=note, image=image)
    for where, sample, size in sized:
        issue = None if sample.image in unturned else _box_issue(sample.box, size)
        if issue is not None:
            kind, note = issue
            yield Issue(kind, where, note, sample.image, sample.phrase)


def _box_issue(box: Box, size: Size | None) -> tuple[str, str] | None:
    """Return (kind of issue, note) for a box x0, y0, x1, y1 in an image of (width, height), None for a valid one."""
    x0, y0, x1, y1 = box
    note = f"{x1 - x0:g} x {y1 - y0:g} px"
    if not (math.isfinite(x1 - x0) and math.isfinite(y1 - y0) and x1 > x0 and y1 > y0):
        return "box-invalid", note
    outside = max(-x0, -y0, *((x1 - size[0], y1 - size[1]) if size else ()))
    if outside > TOLERANCE:
        return "box-outside", f"{outside:g} px outside" + (f" of {size[0]} x {size[1]}" if size else "")
    return ("box-thin", note) if min(x1 - x0, y1 - y0) <= 1 else None


def _unturned_images(located: Sequence[LocatedSample], images: Mapping[Path, ImageInfo]) -> dict[Path, str]:
    """Return images that EXIF turns, while their samples' sizes or boxes are those of the unturned pixels."""
    turned: dict[Path, list[Sample]] = {}
    for _, sample in located:
        if images[sample.image].turned:
            turned.setdefault(sample.image, []).append(sample)
    notes = {}
    for image, samples in turned.items():
        size = images[image].size or (0, 0)
        boxes = np.array([sample.box for sample in samples]).T
        upright, unturned = (int(fits(boxes, *way).sum()) for way in (size, size[::-1]))
        if any(sample.size == size[::-1] != size for sample in samples) or upright < unturned == len(samples):
            notes[image] = (
                f"{unturned} of {len(samples)} boxes are inside the unturned image, {upright} inside the upright"
            )
    return notes
