"""The mapping between an image and the network input, for arrays of numpy and tensors of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

MEAN_COLOR = (0.485, 0.456, 0.406)
"""Mean of ImageNet's pixels, RGB in 0..1: the color of padding."""

Clip = Literal["image", "canvas"]
"""What a predicted box is clipped to: the image, or the square network input with its padding, as TransVG evaluates."""

Boxes = TypeVar("Boxes", "NDArray[np.float64]", "Tensor")


@dataclass(frozen=True, slots=True)
class Letterbox:
    """The position of an image in the square network input: input = image * scale + offset.

    `flip` mirrors the image horizontally first. A crop has negative offsets.
    """

    width: float  # of the image, pixels
    height: float
    side: int  # S
    scale_x: float
    scale_y: float
    left: float  # pixels of the network input
    top: float
    flip: bool = False

    @classmethod
    def fit(cls, width: int, height: int, side: int) -> Letterbox:
        """Scale the longer side to `side` and center, rounding the offsets as TransVG's evaluation does."""
        ratio = side / max(width, height)
        left = round((side - round(width * ratio)) / 2 - 0.1)
        top = round((side - round(height * ratio)) / 2 - 0.1)
        return cls(width, height, side, ratio, ratio, left, top)

    @property
    def content(self) -> tuple[int, int, int, int]:
        """Where the resized image lies in the network's input: left, top, right, bottom in pixels."""
        left, top = round(self.left), round(self.top)
        width, height = round(self.width * self.scale_x), round(self.height * self.scale_y)
        return left, top, left + max(1, width), top + max(1, height)

    def resize(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resize an RGB image to the size of its content, as TransVG evaluates -> uint8 [h, w, 3]."""
        left, top, right, bottom = self.content
        return np.array(image.resize((right - left, bottom - top), Image.Resampling.BILINEAR), dtype=np.uint8)

    def pad(self, resized: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Pad what `resize` returned with the mean color -> float32 [3, S, S] in 0..1, and the mask bool [S, S]."""
        left, top, right, bottom = self.content
        pixels = np.empty((3, self.side, self.side), np.float32)
        pixels[:] = np.array(MEAN_COLOR, np.float32)[:, None, None]
        np.divide(resized.transpose(2, 0, 1), 255, out=pixels[:, top:bottom, left:right], dtype=np.float32)
        return pixels, self.mask()

    def mask(self) -> NDArray[np.bool_]:
        """Return the image mask [S, S], True at padding."""
        left, top, right, bottom = self.content
        mask = np.ones((self.side, self.side), np.bool_)
        mask[top:bottom, left:right] = False
        return mask

    def to_input(self, box: Boxes) -> Boxes:
        """Convert boxes [..., 4] from xyxy in image pixels to cxcywh in 0..1 of the network input, not clipped."""
        x0, y0, x1, y1 = (box[..., edge] for edge in range(4))
        if self.flip:
            x0, x1 = self.width - x1, self.width - x0
        x0, x1 = x0 * self.scale_x + self.left, x1 * self.scale_x + self.left
        y0, y1 = y0 * self.scale_y + self.top, y1 * self.scale_y + self.top
        return _joined(box, (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0) / self.side

    def to_image(self, box: Boxes, clip: Clip = "image") -> Boxes:
        """Convert boxes [..., 4] from cxcywh in 0..1 of the network input to xyxy in pixels of the image, clipped."""
        x, y, w, h = (box[..., number] * self.side for number in range(4))
        edges = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        if clip == "canvas":
            edges = [edge.clip(0, self.side) for edge in edges]
        x0, x1 = ((edge - self.left) / self.scale_x for edge in edges[::2])
        y0, y1 = ((edge - self.top) / self.scale_y for edge in edges[1::2])
        if self.flip:
            x0, x1 = self.width - x1, self.width - x0
        if clip == "image":
            x0, x1 = x0.clip(0, self.width), x1.clip(0, self.width)
            y0, y1 = y0.clip(0, self.height), y1.clip(0, self.height)
        return _joined(box, x0, y0, x1, y1)


def _joined(like: Boxes, *columns: Boxes) -> Boxes:
    """Stack columns [...] to [..., 4], with the library and type of `like`."""
    joined = like * 0.0
    for number, column in enumerate(columns):
        joined[..., number] = column
    return joined
