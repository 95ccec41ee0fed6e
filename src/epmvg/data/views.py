"""Where a picture lies on the canvas, and the canvas of evaluation, drawn without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from epmvg.core.geometry import Letterbox

MEAN_COLOUR = (0.485, 0.456, 0.406)
"""ImageNet's mean, RGB in 0..1: what lies where there is no picture."""


@dataclass(frozen=True, slots=True)
class View:
    """One way of laying a picture on the canvas."""

    letterbox: Letterbox
    crop: tuple[float, float, float, float]  # of the (mirrored) picture, pixels
    size: tuple[int, int]  # of the laid picture on the canvas, pixels
    jitter: tuple[tuple[str, float], ...] = ()

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
    """Resize an image for its evaluation view, as TransVG does -> uint8 [h, w, 3]."""
    return np.array(image.resize(view.size, Image.Resampling.BILINEAR), dtype=np.uint8)


def image_of(laid: NDArray[np.uint8], view: View) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Put what `lay` returned on its canvas: float [3, S, S] in 0..1, mean colour around it, and pad bool [S, S]."""
    side = view.letterbox.side
    left, top, right, bottom = laid_rectangle(view)
    image_size = np.empty((3, side, side), np.float32)
    image_size[:] = np.array(MEAN_COLOUR, np.float32)[:, None, None]
    np.divide(laid.transpose(2, 0, 1), 255, out=image_size[:, top:bottom, left:right], dtype=np.float32)
    image_mask = np.ones((side, side), np.bool_)
    image_mask[top:bottom, left:right] = False
    return image_size, image_mask
