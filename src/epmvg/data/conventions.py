"""Detect from the boxes of a whole data set that they are written in another convention than x, y, width, height.

A single odd box is a mistake; a tenth of all boxes leaving their images while another reading fits nearly all is a
wrong convention, and so are numbers that never pass 100 or 1000 in images of several times that size.
"""

from __future__ import annotations

from array import array

import numpy as np

from epmvg.core.types import Box

Size = tuple[int, int]
Boxes = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # x0, y0, x1, y1, [N] each

TOLERANCE = 1.0  # pixels a box may leave its image: files round, and count from 0 or 1
MIN_BOXES = 20  # below which no convention is detected
ODD = 0.1  # fraction of boxes that must not fit as they are read before another reading is tried
NEARLY_ALL = 0.98  # fraction of boxes that must fit in that other reading
GRIDS = {"box-0-100": 100, "box-0-1000": 1000}  # kind of finding -> the scale that boxes are normalised to
_REACH = 0.8  # of such a scale that the farthest edges must pass, to the right and below
_LARGER = 1.4  # times the scale: both sides of images in which boxes below it are no accident

READINGS = {
    "box-corners": "as corners",
    "box-sizes": "with the corners as x, y, width, height",
    "box-centre": "as centre x, centre y, width, height",
    "box-0-100": "as per cent of the sides",
    "box-0-1000": "as thousandths of the sides",
}
"""Kind of finding -> how the four numbers would have to be read, the likelier first."""


def overhang(box: Box, size: Size | None) -> float:
    """Return how far a box leaves its image, in pixels."""
    x0, y0, x1, y1 = box
    least = max(-x0, -y0)
    return max(least, x1 - size[0], y1 - size[1]) if size else least


def fits(box: Box, size: Size) -> bool:
    """Return whether a box has an area and lies in its image."""
    x0, y0, x1, y1 = box
    return x1 > x0 and y1 > y0 and overhang(box, size) <= TOLERANCE


class BoxConvention:
    """Detects the convention of boxes, collected one by one."""

    def __init__(self) -> None:
        self._numbers = array("d")  # x0, y0, x1, y1, width and height of the image, 0 where they are not stated

    def add(self, box: Box, size: Size | None) -> None:
        """Add a finite box (x0, y0, x1, y1), read from [x, y, x1 - x0, y1 - y0]."""
        self._numbers.extend((*box, *(size or (0, 0))))

    @property
    def boxes(self) -> int:
        return len(self._numbers) // 6

    def detect(self) -> tuple[str, str] | None:
        """Return (kind of finding, why) if the whole data set is written in another convention.

        Where several readings fit, the kind is the likeliest one's, and `why` names the others.
        """
        x0, y0, x1, y1, width, height = np.array(self._numbers).reshape(-1, 6).T
        small = int((np.max([abs(x0), abs(y0), abs(x1 - x0), abs(y1 - y0)], axis=0) <= 1).sum())
        if self.boxes >= MIN_BOXES and small >= NEARLY_ALL * self.boxes:
            return "box-0-1", f"no number is above 1 in {small:,} of {self.boxes:,} boxes"
        sized = (width > 0) & (height > 0)
        return _of_sized((x0[sized], y0[sized], x1[sized], y1[sized]), width[sized], height[sized])


def _of_sized(boxes: Boxes, width: np.ndarray, height: np.ndarray) -> tuple[str, str] | None:
    """Return (kind of finding, why) for boxes whose image's size is stated."""
    x0, y0, x1, y1 = boxes
    count = len(x0)
    if count < MIN_BOXES:
        return None
    fitting = _count_fitting(boxes, width, height)
    for name, grid in GRIDS.items():
        larger = int((np.minimum(width, height) > _LARGER * grid).sum())
        if fitting[name] >= NEARLY_ALL * count and larger >= max(MIN_BOXES, ODD * count):
            why = f"no edge is beyond {grid} in {fitting[name]:,} of {count:,} boxes"
            return name, f"{why}, and {larger:,} are of images far larger"
    misfits = count - int(_fit(boxes, width, height).sum())
    if misfits < ODD * count:
        return None
    why = f"as they are read, {misfits:,} of {count:,} boxes do not fit their images"
    likely = [name for name in READINGS if fitting[name] >= NEARLY_ALL * count]
    if likely:
        others = "".join(f"; {READINGS[name]}, {fitting[name]:,}" for name in likely[1:])
        return likely[0], f"{why}; {READINGS[likely[0]]}, {fitting[likely[0]]:,} do{others}"
    positive = (x0 >= -TOLERANCE) & (y0 >= -TOLERANCE) & (x1 > x0) & (y1 > y0)
    across, down = float((x1 / width).max()), float((y1 / height).max())
    ratio = max(across, down)
    if positive.sum() >= NEARLY_ALL * count and 1.1 < ratio < 10 and min(across, down) > 0.8 * ratio:
        return "box-scaled", f"{why}; on copies {ratio:.2g} times as large all would"
    return None


def _count_fitting(boxes: Boxes, width: np.ndarray, height: np.ndarray) -> dict[str, int]:
    """Return how many boxes fit their images in each of `READINGS`; those of a scale must reach most of it."""
    x0, y0, x1, y1 = boxes
    w, h = x1 - x0, y1 - y0
    corners = (x0, y0, w, h)
    counts = {
        "box-corners": _fit(corners, width, height).sum(),
        "box-sizes": _fit((x0, y0, x0 + x1, y0 + y1), width, height).sum(),
        "box-centre": _fit((x0 - w / 2, y0 - h / 2, x0 + w / 2, y0 + h / 2), width, height).sum(),
    }
    for name, grid in GRIDS.items():
        as_sizes = _fit(boxes, grid, grid)
        within = as_sizes | _fit(corners, grid, grid)
        right, bottom = np.where(as_sizes, x1, w)[within], np.where(as_sizes, y1, h)[within]
        reaches = min(right.max(initial=0.0), bottom.max(initial=0.0)) > _REACH * grid
        counts[name] = within.sum() if reaches else 0
    return {name: int(count) for name, count in counts.items()}


def _fit(boxes: Boxes, width: np.ndarray | int, height: np.ndarray | int) -> np.ndarray:
    """Return which boxes fit their images, as `fits`, [N]."""
    x0, y0, x1, y1 = boxes
    inside = (x0 >= -TOLERANCE) & (y0 >= -TOLERANCE) & (x1 - width <= TOLERANCE) & (y1 - height <= TOLERANCE)
    return inside & (x1 > x0) & (y1 > y0)
