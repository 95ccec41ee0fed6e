"""Views of a picture and its phrases: the letterbox of evaluation, and training's scale, crop, flip and jitter.

Geometry is planned first (`View`, a pure function of sizes, boxes and a random generator) and rendered later, so that
a view can be stored, repeated and tested without a picture.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps, UnidentifiedImageError
from torch import Tensor

from epmvg.boxes import Letterbox
from epmvg.types import Box, InputError

MEAN_COLOUR = (0.485, 0.456, 0.406)
"""ImageNet's mean, RGB in 0..1: what lies where there is no picture."""

MOST_PIXELS = 100_000_000
"""A picture with more is refused before it is decoded: it would take gigabytes."""

_SIDE_WORD = re.compile(r"\b(left|right)(?=\b|most\b|hand\b|handed\b)", re.IGNORECASE)
_PLACE_WORD = re.compile(
    r"\b(left|right)(most|hand)?\b|\b(top|bottom|middle|cent(er|re)|upper|lower|corner|edge)(most)?\b", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Augment:
    """How training views vary; every probability 0 gives the evaluation view.

    `scale`: the longer side becomes this share of the canvas, drawn between it and 1. `crop`: probability of a crop
    whose sides are at least `crop_min` of the picture's; a phrase stays in a cropped view if at least `keep` of its
    box does, and a picture asked about by place ("on the left") is never cropped. `jitter`: probability of changing
    brightness, contrast and saturation by up to 40 %. `move`: probability of a random place on the canvas.
    """

    flip: float = 0.0
    crop: float = 0.0
    crop_min: float = 0.6
    keep: float = 0.8
    scale: float = 1.0
    jitter: float = 0.0
    move: float = 0.0


@dataclass(frozen=True, slots=True)
class View:
    """One way of laying a picture on the canvas."""

    letterbox: Letterbox
    crop: tuple[int, int, int, int]  # of the (mirrored) picture, pixels
    size: tuple[int, int]  # of the laid picture on the canvas, pixels
    jitter: tuple[tuple[str, float], ...] = ()


def swap_sides(phrase: str) -> str:
    """Swap left and right as words ("leftmost" too, "bright" never), keeping the letters' case."""

    def other(match: re.Match[str]) -> str:
        word = match.group(1)
        swapped = "right" if word.lower() == "left" else "left"
        return swapped.upper() if word.isupper() else swapped.capitalize() if word[0].isupper() else swapped

    return _SIDE_WORD.sub(other, phrase)


def names_place(phrase: str) -> bool:
    """Say whether a phrase names a place in the picture, so that cropping could make it false."""
    return _PLACE_WORD.search(phrase) is not None


def evaluation_view(size: tuple[int, int], side: int) -> View:
    """Lay a picture of (width, height) on the canvas as TransVG evaluates: longer side to S, centred."""
    width, height = size
    letterbox = Letterbox.fit(width, height, side)
    laid = (max(1, round(width * letterbox.scale_x)), max(1, round(height * letterbox.scale_y)))
    return View(letterbox, (0, 0, width, height), laid)


def training_view(
    size: tuple[int, int],
    side: int,
    boxes: Sequence[Box],
    phrases: Sequence[str],
    augment: Augment,
    random: np.random.Generator,
) -> tuple[View, list[int]]:
    """Plan a training view of a picture of (width, height) and say which phrases (by index) hold in it."""
    width, height = size
    flip = bool(random.random() < augment.flip)
    if flip:
        boxes = [(width - x1, y0, width - x0, y1) for x0, y0, x1, y1 in boxes]
    crop, kept = (0, 0, width, height), list(range(len(boxes)))
    if random.random() < augment.crop and not any(names_place(phrase) for phrase in phrases):
        crop, kept = _crop(width, height, boxes, augment, random)
    x0, y0, x1, y1 = crop
    longest = max(1, round(side * random.uniform(augment.scale, 1.0)))
    scale = longest / max(x1 - x0, y1 - y0)
    laid = (max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale)))
    if random.random() < augment.move:
        left, top = int(random.integers(0, side - laid[0] + 1)), int(random.integers(0, side - laid[1] + 1))
    else:
        left, top = round((side - laid[0]) / 2 - 0.1), round((side - laid[1]) / 2 - 0.1)
    scale_x, scale_y = laid[0] / (x1 - x0), laid[1] / (y1 - y0)
    letterbox = Letterbox(width, height, side, scale_x, scale_y, left - x0 * scale_x, top - y0 * scale_y, flip)
    jitter: tuple[tuple[str, float], ...] = ()
    if random.random() < augment.jitter:
        names = random.permutation(["Brightness", "Contrast", "Color"])
        jitter = tuple((str(name), float(random.uniform(0.6, 1.4))) for name in names)
    return View(letterbox, crop, laid, jitter), kept


def _crop(
    width: int, height: int, boxes: Sequence[Box], augment: Augment, random: np.random.Generator
) -> tuple[tuple[int, int, int, int], list[int]]:
    """Draw a crop that keeps at least half of the boxes; after ten failures keep the picture whole."""
    for _ in range(10):
        w = int(random.integers(int(width * augment.crop_min), width + 1)) or 1
        h = int(random.integers(int(height * augment.crop_min), height + 1)) or 1
        x, y = int(random.integers(0, width - w + 1)), int(random.integers(0, height - h + 1))
        kept = [i for i, box in enumerate(boxes) if _visible(box, (x, y, x + w, y + h)) >= augment.keep]
        if kept and 2 * len(kept) >= len(boxes):
            return (x, y, x + w, y + h), kept
    return (0, 0, width, height), list(range(len(boxes)))


def _visible(box: Box, crop: tuple[int, int, int, int]) -> float:
    """Share of a box's area inside a crop."""
    across = min(box[2], crop[2]) - max(box[0], crop[0])
    down = min(box[3], crop[3]) - max(box[1], crop[1])
    return max(0.0, across) * max(0.0, down) / ((box[2] - box[0]) * (box[3] - box[1]))


def laid_rectangle(view: View) -> tuple[int, int, int, int]:
    """Where the picture lies on the canvas: (left, top, right, bottom) in whole pixels."""
    left = round(view.letterbox.left + view.crop[0] * view.letterbox.scale_x)
    top = round(view.letterbox.top + view.crop[1] * view.letterbox.scale_y)
    return left, top, left + view.size[0], top + view.size[1]


def pad_of(view: View) -> Tensor:
    """Bool [S, S], True where the view has no picture."""
    left, top, right, bottom = laid_rectangle(view)
    pad = torch.ones(view.letterbox.side, view.letterbox.side, dtype=torch.bool)
    pad[top:bottom, left:right] = False
    return pad


def render(image: Image.Image, view: View) -> Tensor:
    """Lay an RGB picture on the canvas -> float [3, S, S] in 0..1, mean colour around it."""
    if view.letterbox.flip:
        image = ImageOps.mirror(image)
    whole = view.crop == (0, 0, *image.size)
    if whole and view.size == image.size:
        laid = image
    else:
        laid = image.resize(view.size, Image.Resampling.BILINEAR, box=None if whole else view.crop)
    for name, factor in view.jitter:
        laid = getattr(ImageEnhance, name)(laid).enhance(factor)
    side = view.letterbox.side
    canvas = torch.tensor(MEAN_COLOUR).view(3, 1, 1).repeat(1, side, side)
    left, top, right, bottom = laid_rectangle(view)
    pixels = torch.from_numpy(np.array(laid, dtype=np.uint8)).permute(2, 0, 1)
    canvas[:, top:bottom, left:right] = pixels.float() / 255
    return canvas


def open_image(source: Path | BytesIO) -> Image.Image:
    """Open a photo, a file or its bytes, as RGB, upright by its EXIF orientation.

    Raises:
        InputError: missing, empty, truncated, too large or not a picture.
    """
    file = source if isinstance(source, Path) else "The image"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own bound speaks first
            with Image.open(source) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise InputError(
                        f"{file} has {image.width} x {image.height} pixels, more than {MOST_PIXELS:,}: scale it down."
                    )
                upright = ImageOps.exif_transpose(image)
                return _to_rgb(upright)
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist: check the path.") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{file} has more than {MOST_PIXELS:,} pixels: scale it down.") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{file} is not a picture this program can read: convert it to JPEG or PNG.") from error
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} cannot be decoded ({error}): fetch or save it again.") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":  # 16-bit grey: scale, where Pillow would clip
        return Image.fromarray((np.asarray(image, dtype=np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        paper = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(paper, rgba).convert("RGB")
    return image.convert("RGB")
