"""What can be wrong with a single box, and how far two of them agree."""

from __future__ import annotations

import math

from epmvg.core.types import Box
from epmvg.data.conventions import TOLERANCE, Size, overhang


def fault_of(box: Box, size: Size | None) -> tuple[str, str] | None:
    """Return (kind, note) of what is wrong with a box (x0, y0, x1, y1) in an image of (width, height), or None."""
    x0, y0, x1, y1 = box
    width, height = x1 - x0, y1 - y0
    if not all(map(math.isfinite, box)):
        return "box-number", "NaN or infinite"
    if width < 0 or height < 0:
        return "box-inverted", f"{width:g} x {height:g} px"
    if width == 0 or height == 0:
        return "box-empty", f"{width:g} x {height:g} px"
    far = overhang(box, size)
    if far > TOLERANCE:
        of = f" of {size[0]} x {size[1]}" if size else ""
        return "box-outside", f"{far:g} px outside{of}"
    if width <= 1 or height <= 1:
        return "box-thin", f"{width:g} x {height:g} px"
    return None


def overlap(one: Box, other: Box) -> float:
    """Return the IoU of two boxes, 0 where either is none."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    if across <= 0 or down <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return across * down / (areas - across * down)
