"""What can be wrong with a box, and with the boxes of a whole file: the convention they were written in.

A single odd box is a slip; a tenth of all boxes leaving their images while another reading fits nearly all is a wrong
convention. That is said once, for the file, instead of a thousand times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from epmvg.types import Box

SLACK = 1.0
"""Pixels a box may leave its image: files round, and count from 0 or 1."""

FEWEST = 20
"""Boxes below which nothing is said about a convention."""

ODD = 0.1
"""Share of boxes that must not fit as they are read before another reading is tried."""

NEARLY_ALL = 0.98
"""Share of boxes that must fit in that other reading."""

_GRID = (1000, 1000)

Size = tuple[int, int]


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
    beyond = _beyond(box, size)
    if beyond > SLACK:
        of = f" of {size[0]} x {size[1]}" if size else ""
        return "box-outside", f"{beyond:g} px outside{of}"
    if width <= 1 or height <= 1:
        return "box-thin", f"{width:g} x {height:g} px"
    return None


def _beyond(box: Box, size: Size | None) -> float:
    """Return how far a box leaves its image, in pixels."""
    x0, y0, x1, y1 = box
    least = max(-x0, -y0)
    return max(least, x1 - size[0], y1 - size[1]) if size else least


def fits(box: Box, size: Size) -> bool:
    """Say whether a box is one, and lies in its image."""
    x0, y0, x1, y1 = box
    return x1 > x0 and y1 > y0 and _beyond(box, size) <= SLACK


def overlap(one: Box, other: Box) -> float:
    """Return the IoU of two boxes, 0 where either is none."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    if across <= 0 or down <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return across * down / (areas - across * down)


@dataclass(slots=True)
class Convention:
    """Counts, over a file, of how many boxes fit their images in which reading."""

    boxes: int = 0
    small: int = 0  # no number above 1
    framed: int = 0  # boxes whose image's size is known
    misfits: int = 0
    corners: int = 0  # fit if the four numbers are corners
    sizes: int = 0  # fit if the corners we got are x, y, width, height
    thousand: int = 0  # fit a square of 1000, either way
    reach: float = 0.0  # the farthest edge in that square

    def add(self, box: Box, size: Size | None) -> None:
        """Count a finite box (x0, y0, x1, y1), read from [x, y, x1 - x0, y1 - y0]."""
        x0, y0, x1, y1 = box
        width, height = x1 - x0, y1 - y0
        numbers = max(abs(x0), abs(y0), abs(width), abs(height))
        self.boxes += 1
        self.small += numbers <= 1
        if size is None:
            return
        self.framed += 1
        if not fits(box, size):
            self.misfits += 1
        self.corners += fits((x0, y0, width, height), size)
        self.sizes += fits((x0, y0, x0 + x1, y0 + y1), size)
        reach = max(x1, y1) if fits(box, _GRID) else max(width, height)
        self.thousand += fits(box, _GRID) or fits((x0, y0, width, height), _GRID)
        self.reach = max(self.reach, reach)

    def verdict(self) -> tuple[str, str] | None:
        """Return (kind, why) if the whole file is written in another convention."""
        if self.boxes >= FEWEST and self.small >= NEARLY_ALL * self.boxes:
            return "box-0-1", f"no number is above 1 in {self.small:,} of {self.boxes:,} boxes"
        if self.framed < FEWEST or self.misfits < ODD * self.framed:
            return None
        odd = f"as they are read, {self.misfits:,} of {self.framed:,} boxes do not fit their images"
        if self.corners >= NEARLY_ALL * self.framed:
            return "box-corners", f"{odd}; as corners, {self.corners:,} do"
        if self.sizes >= NEARLY_ALL * self.framed:
            return "box-sizes", f"{odd}; with the corners as x, y, width, height, {self.sizes:,} do"
        if self.thousand >= NEARLY_ALL * self.framed and 700 < self.reach <= 1000 + SLACK:
            return "box-0-1000", f"{odd}; {self.thousand:,} fit 1000 x 1000, and reach {self.reach:g}"
        return None
