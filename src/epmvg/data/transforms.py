"""Training transforms of an image and its phrases: scale, crop, translation, horizontal flip and color jitter.

`draw_transform` draws the geometry from sizes, boxes and a random generator alone, so that it can be repeated and
tested without an image, and an image is decoded no finer than its transform needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from epmvg.config.settings import AugmentSettings
from epmvg.core.geometry import MEAN_COLOR, Letterbox
from epmvg.data.side_words import has_clear_sides, names_place

_GRAY = (0.299, 0.587, 0.114)  # weights of red, green and blue in Pillow's conversion to gray
_CROP_TRIES = 20  # crops drawn before the image stays whole (TransVG)


def largest_side(augment: AugmentSettings, image_size: int) -> tuple[int, bool]:
    """Return the side in pixels beyond which an image has no detail that a transform keeps.

    It is the longer side, or where the second value is true the shorter one, which alone bounds crops of "transvg".
    """
    is_shorter = augment.crop > 0 and augment.recipe == "transvg"
    smallest = 384 / 600 if is_shorter else augment.min_crop if augment.crop else 1.0
    return math.ceil(image_size / smallest), is_shorter


@dataclass(frozen=True, slots=True)
class ImageTransform:
    """One drawn training transform of an image."""

    letterbox: Letterbox
    crop: tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the flipped image
    size: tuple[int, int]  # width and height of the resized crop in pixels
    color_jitter: tuple[tuple[str, float], ...] = ()  # names of Pillow's enhancers with their factors, in order

    @property
    def min_size(self) -> tuple[int, int]:
        """Width and height of the whole image below which the transform would lose detail."""
        x0, y0, x1, y1 = self.crop
        width, height = self.letterbox.width, self.letterbox.height
        return math.ceil(self.size[0] * width / (x1 - x0)), math.ceil(self.size[1] * height / (y1 - y0))

    @property
    def content(self) -> tuple[int, int, int, int]:
        """Where the resized crop lies in the input: left, top, right, bottom in pixels."""
        left = round(self.letterbox.left + self.crop[0] * self.letterbox.scale_x)
        top = round(self.letterbox.top + self.crop[1] * self.letterbox.scale_y)
        return left, top, left + self.size[0], top + self.size[1]

    def mask(self) -> Tensor:
        """Return the image mask, bool [S, S], True at padding."""
        left, top, right, bottom = self.content
        mask = torch.ones(self.letterbox.side, self.letterbox.side, dtype=torch.bool)
        mask[top:bottom, left:right] = False
        return mask

    def boxes(self, boxes: Tensor) -> Tensor:
        """Map boxes [P, 4], xyxy in pixels of the image, to cxcywh in 0..1 of the input, clipped to the content."""
        left, top, right, bottom = (edge / self.letterbox.side for edge in self.content)
        low, high = boxes.new_tensor([left, top]), boxes.new_tensor([right, bottom])
        mapped = self.letterbox.to_input(boxes)
        x0y0 = (mapped[:, :2] - mapped[:, 2:] / 2).clamp(low, high)
        x1y1 = (mapped[:, :2] + mapped[:, 2:] / 2).clamp(low, high)
        return torch.cat([(x0y0 + x1y1) / 2, x1y1 - x0y0], 1)


def draw_transform(
    size: tuple[int, int],
    image_size: int,
    boxes: ArrayLike,
    phrases: Sequence[str],
    augment: AugmentSettings,
    random: np.random.Generator,
) -> ImageTransform:
    """Draw one training transform of an image for all its phrases.

    Args:
        size: width and height of the image in pixels.
        image_size: S, the side of the network's input in pixels.
        boxes: of the phrases, [P, 4] xyxy in pixels of the image.
        phrases: [P]; an image is not flipped if one has "left" or "right" that may be no side, and not cropped if one
            names a place ("on the left").
        augment: with recipe "transvg", longer sides in steps of 1/20 of the input size (640, 608, ... 448 with `scale`
            0.7), and crops of 384 to 600 px from an image whose shorter side is 400, 500 or 600 px, for 640 px.
    """
    width, height = size
    flip = bool(random.random() < augment.horizontal_flip) and all(map(has_clear_sides, phrases))
    crop = (0.0, 0.0, float(width), float(height))
    if random.random() < augment.crop and not any(map(names_place, phrases)):
        crop = _draw_crop(size, image_size, np.asarray(boxes, dtype=np.float64).reshape(-1, 4), augment, random)
    x0, y0, x1, y1 = (width - crop[2], crop[1], width - crop[0], crop[3]) if flip else crop
    scale = _draw_longer_side(image_size, augment, random) / max(x1 - x0, y1 - y0)
    resized = (max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale)))
    if random.random() < augment.translate:
        left, top = (int(random.integers(0, image_size - side + 1)) for side in resized)
    else:
        left, top = (round((image_size - side) / 2 - 0.1) for side in resized)
    scale_x, scale_y = resized[0] / (x1 - x0), resized[1] / (y1 - y0)
    letterbox = Letterbox(width, height, image_size, scale_x, scale_y, left - x0 * scale_x, top - y0 * scale_y, flip)
    jitter: tuple[tuple[str, float], ...] = ()
    if random.random() < augment.color_jitter:
        names = random.permutation(["Brightness", "Contrast", "Color"])
        jitter = tuple((str(name), float(random.uniform(0.6, 1.4))) for name in names)
    return ImageTransform(letterbox, (x0, y0, x1, y1), resized, jitter)


def _draw_longer_side(image_size: int, augment: AugmentSettings, random: np.random.Generator) -> int:
    if augment.recipe == "transvg":
        return max(1, round(image_size * (1 - int(random.integers(0, round((1 - augment.scale) * 20) + 1)) / 20)))
    return max(1, round(image_size * random.uniform(augment.scale, 1.0)))


def _draw_crop(
    size: tuple[int, int],
    image_size: int,
    boxes: NDArray[np.float64],
    augment: AugmentSettings,
    random: np.random.Generator,
) -> tuple[float, float, float, float]:
    """Return the first drawn crop that keeps every box [P, 4], else the whole image; xyxy in pixels of the image."""
    width, height = size
    frame = size  # in which crops are drawn
    low = (max(1, int(width * augment.min_crop)), max(1, int(height * augment.min_crop)))
    high = size
    if augment.recipe == "transvg":
        ratio = round(image_size * random.choice([400, 500, 600]) / 640) / min(size)
        frame = (max(1, round(width * ratio)), max(1, round(height * ratio)))
        high = (min(frame[0], round(image_size * 600 / 640)), min(frame[1], round(image_size * 600 / 640)))
        low = (min(high[0], round(image_size * 384 / 640)), min(high[1], round(image_size * 384 / 640)))
    w, h = (random.integers(low[i], high[i] + 1, _CROP_TRIES) for i in range(2))
    x, y = random.integers(0, frame[0] - w + 1), random.integers(0, frame[1] - h + 1)
    drawn = np.stack([x, y, x + w, y + h], 1).astype(np.float64)  # [T, 4]
    crops = np.round(drawn * np.array([width / frame[0], height / frame[1]] * 2))
    crops[:, 2:] = np.maximum(crops[:, 2:], crops[:, :2] + 1)
    kept = (_visible(boxes, crops) >= augment.min_visible).all(1)
    x0, y0, x1, y1 = crops[kept.argmax()] if kept.any() else (0, 0, width, height)
    return float(x0), float(y0), min(float(x1), width), min(float(y1), height)


def _visible(boxes: NDArray[np.float64], crops: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the fraction of each box [P, 4] inside each crop [T, 4] -> [T, P]."""
    low = np.maximum(boxes[None, :, :2], crops[:, None, :2])
    high = np.minimum(boxes[None, :, 2:], crops[:, None, 2:])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    visible: NDArray[np.float64] = (high - low).clip(min=0).prod(-1) / np.maximum(area, np.finfo(np.float64).tiny)
    return visible


def apply_transform(image: Image.Image, transform: ImageTransform, out: Tensor | None = None) -> Tensor:
    """Apply a training transform to an RGB image.

    Args:
        image: the one for which the transform was drawn, or a reduced copy of it.
        transform: the drawn transform.
        out: float32 [3, S, S] to write to.

    Returns:
        float32 [3, S, S] in 0..1, with the mean color at padding.
    """
    side = transform.letterbox.side
    out = torch.empty(3, side, side) if out is None else out
    left, top, right, bottom = transform.content
    rows = out[:, top:bottom]
    mean = torch.tensor(MEAN_COLOR).view(3, 1, 1)
    for padding in (out[:, :top], out[:, bottom:], rows[:, :, :left], rows[:, :, right:]):
        padding.copy_(mean.expand_as(padding))
    content = rows[:, :, left:right]
    content.copy_(_crop_and_resize(image, transform)).div_(255)
    for name, factor in transform.color_jitter:
        _adjust(content, name, factor)
    return out


def _crop_and_resize(image: Image.Image, transform: ImageTransform) -> Tensor:
    """Crop, resize and flip -> uint8 [3, h, w]. Torch's antialiasing filter is Pillow's, but faster."""
    x0, y0, x1, y1 = transform.crop
    width, height = transform.letterbox.width, transform.letterbox.height
    if transform.letterbox.flip:
        x0, x1 = width - x1, width - x0
    left = min(round(x0 * image.width / width), image.width - 1)
    top = min(round(y0 * image.height / height), image.height - 1)
    right, bottom = round(x1 * image.width / width), round(y1 * image.height / height)
    pixels = np.array(image, dtype=np.uint8)[top : max(bottom, top + 1), left : max(right, left + 1)]
    resized = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    size = transform.size[::-1]
    if resized.shape[2:] != size:
        resized = F.interpolate(resized, size, mode="bilinear", antialias=True, align_corners=False)
    return resized[0].flip(-1) if transform.letterbox.flip else resized[0]


def _adjust(pixels: Tensor, name: str, factor: float) -> None:
    """Change float [3, h, w] in place as Pillow's enhancer of a name does.

    torchvision's `adjust_contrast` and `adjust_saturation` sum in torch: their last digits depend on its threads.
    """
    if name == "Brightness":
        pixels.mul_(factor)
    elif name == "Contrast":
        gray = sum(float(plane.numpy().mean()) * weight for plane, weight in zip(pixels, _GRAY, strict=True))
        pixels.mul_(factor).add_(gray * (1 - factor))
    else:
        red, green, blue = (plane * (weight * (1 - factor)) for plane, weight in zip(pixels, _GRAY, strict=True))
        pixels.mul_(factor).add_(red.add_(green).add_(blue))
    if factor > 1:  # else the values stay in range
        pixels.clamp_(0, 1)
