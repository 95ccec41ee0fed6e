"""Detect from the boxes of a whole data set that they are written in another convention than x, y, width, height.

A single odd box is a mistake; a tenth of all boxes leaving their images while another reading fits nearly all is a
wrong convention, and so are numbers that never pass 100 or 1000 in images of several times that size.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from epmvg.core.types import Box

Size = tuple[int, int]
Boxes = NDArray[np.float64]  # [4, N]: x0, y0, x1, y1

TOLERANCE = 1.0  # pixels a box may leave its image: files round, and count from 0 or 1
MIN_BOXES = 20  # below which no convention is detected
ODD = 0.1  # fraction of boxes that must not fit as they are read before another reading is tried
NEARLY_ALL = 0.98  # fraction of boxes that must fit in that other reading
GRIDS = {"as percent of the sides": 100, "as thousandths of the sides": 1000}  # reading -> scale of the numbers
_REACH = 0.8  # of such a scale that the farthest edges must pass, to the right and below
_LARGER = 1.4  # times the scale: both sides of images in which boxes below it are no accident


def detect_convention(boxes: Iterable[tuple[Box, Size | None]]) -> str | None:
    """Return why the whole data set seems to be written in another convention, with those that would fit; else None.

    Args:
        boxes: finite boxes (x0, y0, x1, y1), read from [x, y, x1 - x0, y1 - y0], and the width and height of their
            images, None where unknown.
    """
    numbers = np.fromiter(((*box, *(size or (0, 0))) for box, size in boxes), dtype=(np.float64, 6))
    count = len(numbers)
    if count < MIN_BOXES:
        return None
    x0, y0, x1, y1, width, height = numbers.T
    small = int((np.abs([x0, y0, x1 - x0, y1 - y0]).max(0) <= 1).sum())
    if small >= NEARLY_ALL * count:
        return f"as fractions of the sides, {small:,} of {count:,} boxes fit their images"
    sized = numbers[(width > 0) & (height > 0)].T
    return _detect_sized(sized[:4], sized[4], sized[5])


def _detect_sized(boxes: Boxes, width: NDArray[np.float64], height: NDArray[np.float64]) -> str | None:
    count = boxes.shape[1]
    if count < MIN_BOXES:
        return None
    fitting = _count_fitting(boxes, width, height)
    likely = {reading: number for reading, number in fitting.items() if number >= NEARLY_ALL * count}
    for reading, grid in GRIDS.items():
        larger = int((np.minimum(width, height) > _LARGER * grid).sum())
        if reading in likely and larger >= max(MIN_BOXES, ODD * count):
            return f"{reading}, {likely[reading]:,} of {count:,} boxes fit, and {larger:,} images are far larger"
    misfits = count - int(fits(boxes, width, height).sum())
    if misfits < ODD * count:
        return None
    across, down = (boxes[2:] / [width, height]).max(axis=1)
    ratio = max(across, down)
    scaled = int(fits(boxes, ratio * width, ratio * height).sum())
    if not likely and scaled >= NEARLY_ALL * count and 1.1 < ratio < 10 and min(across, down) > 0.8 * ratio:
        likely[f"in images {ratio:.2g} times as large"] = scaled
    if not likely:
        return None
    readings = "; ".join(f"{reading}, {number:,} do" for reading, number in likely.items())
    return f"as they are read, {misfits:,} of {count:,} boxes do not fit their images; {readings}"


def _count_fitting(boxes: Boxes, width: NDArray[np.float64], height: NDArray[np.float64]) -> dict[str, int]:
    """Return how many boxes fit their images in other readings; those of a scale must reach most of it."""
    x0, y0, x1, y1 = boxes
    w, h = x1 - x0, y1 - y0
    corners, centered = np.array([x0, y0, w, h]), np.array([x0 - w / 2, y0 - h / 2, x0 + w / 2, y0 + h / 2])
    counts = {
        "as corners": fits(corners, width, height).sum(),
        "as center x, center y, width, height": fits(centered, width, height).sum(),
    }
    for reading, grid in GRIDS.items():
        as_sizes = fits(boxes, grid, grid)
        within = as_sizes | fits(corners, grid, grid)
        right, bottom = np.where(as_sizes, x1, w)[within], np.where(as_sizes, y1, h)[within]
        reaches = min(right.max(initial=0.0), bottom.max(initial=0.0)) > _REACH * grid
        counts[reading] = within.sum() if reaches else 0
    return {reading: int(count) for reading, count in counts.items()}


def fits(boxes: Boxes, width: NDArray[np.float64] | int, height: NDArray[np.float64] | int) -> NDArray[np.bool_]:
    """Return which boxes have an area and lie in their images, [N]."""
    x0, y0, x1, y1 = boxes
    inside = (x0 >= -TOLERANCE) & (y0 >= -TOLERANCE) & (x1 - width <= TOLERANCE) & (y1 - height <= TOLERANCE)
    return np.asarray(inside & (x1 > x0) & (y1 > y0))
