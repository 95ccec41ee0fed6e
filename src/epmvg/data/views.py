"""Where a picture lies on the canvas, and the canvas of evaluation, drawn without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from epmvg.letterbox import Letterbox

MEAN_COLOUR = (0.485, 0.456, 0.406)
"""ImageNet's mean, RGB in 0..1: what lies where there is no picture."""


@dataclass(frozen=True, slots=True)
class View:
    """One way of laying a picture on the canvas."""

    letterbox: Letterbox
    crop: tuple[float, float, float, float]  # of the (mirrored) picture, pixels
    size: tuple[int, int]  # of the laid picture on the canvas, pixels
    jitter: tuple[tuple[str, float], ...] = ()
    first: tuple[int, int] | None = None  # the whole picture is scaled to this before the crop (as published)
    exact: bool = True  # rendered by Pillow, as published; else several times faster and a grey level apart

    @property
    def needs(self) -> tuple[int, int]:
        """Width and height of the whole picture below which this view would lose detail."""
        x0, y0, x1, y1 = self.crop
        width, height = self.letterbox.width, self.letterbox.height
        return math.ceil(self.size[0] * width / (x1 - x0)), math.ceil(self.size[1] * height / (y1 - y0))


def evaluation_view(size: tuple[int, int], side: int) -> View:
    """Lay a picture of (width, height) on the canvas as TransVG evaluates: longer side to S, centred."""
    width, height = size
    letterbox = Letterbox.fit(width, height, side)
    laid = (max(1, round(width * letterbox.scale_x)), max(1, round(height * letterbox.scale_y)))
    return View(letterbox, (0, 0, width, height), laid)


def laid_rectangle(view: View) -> tuple[int, int, int, int]:
    """Where the picture lies on the canvas: (left, top, right, bottom) in whole pixels."""
    left = round(view.letterbox.left + view.crop[0] * view.letterbox.scale_x)
    top = round(view.letterbox.top + view.crop[1] * view.letterbox.scale_y)
    return left, top, left + view.size[0], top + view.size[1]


def lay(image: Image.Image, view: View) -> NDArray[np.uint8]:
    """Crop, scale, jitter and mirror with Pillow, as TransVG does -> uint8 [h, w, 3]."""
    if view.first:
        image = image.resize(view.first, Image.Resampling.BILINEAR)
    crop = crop_of(image, view)
    laid = image if crop == (0, 0, *image.size) else image.crop(crop)
    laid = laid.resize(view.size, Image.Resampling.BILINEAR)
    for name, factor in view.jitter:
        laid = getattr(ImageEnhance, name)(laid).enhance(factor)
    if view.letterbox.flip:
        laid = ImageOps.mirror(laid)
    return np.array(laid, dtype=np.uint8)


def canvas_of(laid: NDArray[np.uint8], view: View) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Put what `lay` returned on its canvas: float [3, S, S] in 0..1, mean colour around it, and pad bool [S, S]."""
    side = view.letterbox.side
    left, top, right, bottom = laid_rectangle(view)
    canvas = np.empty((3, side, side), np.float32)
    canvas[:] = np.array(MEAN_COLOUR, np.float32)[:, None, None]
    np.divide(laid.transpose(2, 0, 1), 255, out=canvas[:, top:bottom, left:right], dtype=np.float32)
    pad = np.ones((side, side), np.bool_)
    pad[top:bottom, left:right] = False
    return canvas, pad


def crop_of(image: Image.Image, view: View) -> tuple[int, int, int, int]:
    """Return the view's crop in whole pixels of an unmirrored, perhaps reduced picture."""
    x0, y0, x1, y1 = view.crop
    width, height = view.letterbox.width, view.letterbox.height
    if view.letterbox.flip:
        x0, x1 = width - x1, width - x0
    left, top = round(x0 * image.width / width), round(y0 * image.height / height)
    right, bottom = round(x1 * image.width / width), round(y1 * image.height / height)
    return min(left, image.width - 1), min(top, image.height - 1), max(right, left + 1), max(bottom, top + 1)
