"""Find boxes that are invalid, outside of their image, or in another convention than they are read in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from epmvg.core.types import Box, Sample
from epmvg.data.conventions import TOLERANCE, BoxConvention, Size, fits, overhang
from epmvg.data.validation.images import ImageInfo
from epmvg.data.validation.issues import Issue
from epmvg.data.validation.samples import Located


def box_issues(located: Sequence[Located], images: Mapping[Path, ImageInfo]) -> Iterator[Issue]:
    """Check boxes; if all are in another convention, that is the only issue."""
    convention = BoxConvention()
    for _, sample in located:
        if all(map(math.isfinite, sample.box)):
            convention.add(sample.box, images[sample.image].size or sample.size)
    detected = convention.detect()
    if detected is not None:
        kind, why = detected
        yield Issue(kind, note=why)
        return
    unturned = _unturned_images(located, images)
    for image, note in unturned.items():
        yield Issue("image-turned", note=note, image=image)
    for where, sample in located:
        issue = None if sample.image in unturned else box_fault(sample.box, images[sample.image].size or sample.size)
        if issue is not None:
            kind, note = issue
            yield Issue(kind, where, note, sample.image, sample.phrase)


def box_fault(box: Box, size: Size | None) -> tuple[str, str] | None:
    """Return (kind of issue, note) for a box x0, y0, x1, y1 in an image of (width, height), None for a valid one."""
    width, height = box[2] - box[0], box[3] - box[1]
    note = f"{width:g} x {height:g} px"
    if not (math.isfinite(width) and math.isfinite(height) and width > 0 and height > 0):
        return "box-invalid", note
    distance = overhang(box, size)
    if distance > TOLERANCE:
        return "box-outside", f"{distance:g} px outside" + (f" of {size[0]} x {size[1]}" if size else "")
    return ("box-thin", note) if min(width, height) <= 1 else None


def _unturned_images(located: Sequence[Located], images: Mapping[Path, ImageInfo]) -> dict[Path, str]:
    """Return images that EXIF turns, while their samples' sizes or boxes are those of the unturned pixels."""
    turned: dict[Path, list[Sample]] = {}
    for _, sample in located:
        if images[sample.image].turned:
            turned.setdefault(sample.image, []).append(sample)
    notes = {}
    for image, samples in turned.items():
        size = images[image].size or (0, 0)
        upright, unturned = (sum(fits(sample.box, way) for sample in samples) for way in (size, size[::-1]))
        if any(sample.size == size[::-1] != size for sample in samples) or upright < unturned == len(samples):
            notes[image] = (
                f"{unturned} of {len(samples)} boxes are inside the unturned image, {upright} inside the upright"
            )
    return notes
