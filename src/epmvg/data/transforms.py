"""Views of a picture and its phrases: the letterbox of evaluation, and training's scale, crop, flip and jitter.

Geometry is planned first (`View`, a pure function of sizes, boxes and a random generator) and rendered later, so that
a view can be stored, repeated and tested without a picture, and a photo is decoded no finer than its view needs.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from epmvg.boxes import Letterbox
from epmvg.data import as_published
from epmvg.data.archives import source_of
from epmvg.types import Box, InputError

MEAN_COLOUR = (0.485, 0.456, 0.406)
"""ImageNet's mean, RGB in 0..1: what lies where there is no picture."""

_MEAN = torch.tensor(MEAN_COLOUR).view(3, 1, 1)

MOST_PIXELS = 100_000_000
"""A picture with more is refused before it is decoded: it would take gigabytes."""

_SIDE = r"\b(left|right)(?=(?:most|hand|handed|side|sided|er|est|wards?)?\b)"
_SIDE_WORD = re.compile(_SIDE, re.IGNORECASE)
_PLACE_WORD = re.compile(
    rf"{_SIDE}|\b(top|bottom|middle|mid|cent(er|re|ral)|upper|lower|corner|edge)(most)?\b", re.IGNORECASE
)

_GREY = (0.299, 0.587, 0.114)  # of red, green and blue, as Pillow

_TRIES = 20  # crops drawn before the picture stays whole (TransVG)


@dataclass(frozen=True, slots=True)
class Augment:
    """How training views vary; every probability 0 gives the evaluation view.

    `scale`: the longer side becomes this share of the canvas, drawn between it and 1. `crop`: probability of a crop
    whose sides are at least `crop_min` of the picture's; a crop shows at least the share `keep` of each target, and a
    picture asked about by place ("on the left") is never cropped. `jitter`: probability of changing brightness,
    contrast and saturation by up to 40 %. `move`: probability of a random place on the canvas.

    `style="transvg"` draws sizes and crops as TransVG does (SPEC_transvg 7.4): sizes in steps of 1/20 of the canvas
    (640, 608, ... 448 with `scale` 0.7) and crops of 384 to 600 px from a picture whose shorter side is 400, 500 or
    600 px, on a canvas of 640. `as_published` brings back its faults: crops that lose their target, sides swapped and
    places found inside other words; its views are rendered step by step, to be compared pixel by pixel.

    Raises:
        InputError: `as_published` with another style.
    """

    flip: float = 0.0
    crop: float = 0.0
    crop_min: float = 0.6
    keep: float = 0.8
    scale: float = 1.0
    jitter: float = 0.0
    move: float = 0.0
    style: Literal["free", "transvg"] = "free"
    as_published: bool = False

    def __post_init__(self) -> None:
        if self.as_published and self.style != "transvg":
            raise InputError("data.augment.as_published=true is of one style: set data.augment.style=transvg.")

    def finest(self, side: int) -> int:
        """Longer side, pixels, at which a kept picture is as fine as any view of it on a canvas of `side`."""
        share = 1.0 if not self.crop else self.crop_min if self.style == "free" else 384 / 600
        return math.ceil(side / share)

    def mirrored(self, phrase: str) -> str:
        """Return a phrase as it is true of the mirrored picture."""
        return as_published.swap_sides(phrase.lower()) if self.as_published else swap_sides(phrase)

    def fixed(self, phrase: str) -> bool:
        """Say whether a phrase forbids a crop."""
        return as_published.names_place(phrase) if self.as_published else names_place(phrase)


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
) -> View:
    """Plan one training view of a picture of (width, height) for all its phrases."""
    width, height = size
    flip = bool(random.random() < augment.flip)
    crop, first = (0.0, 0.0, float(width), float(height)), None
    if random.random() < augment.crop and not any(augment.fixed(phrase) for phrase in phrases):
        crop, first = _crop(size, side, np.array(boxes, dtype=np.float64).reshape(-1, 4), augment, random)
    x0, y0, x1, y1 = (width - crop[2], crop[1], width - crop[0], crop[3]) if flip else crop
    across, down = first or size  # where the crop was drawn, and is a whole number of pixels
    shape = round((x1 - x0) * across / width), round((y1 - y0) * down / height)
    scale = _longest(side, augment, random) / max(shape)
    laid = (max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale)))
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
    return View(letterbox, (x0, y0, x1, y1), laid, jitter, first, exact=augment.as_published)


def _longest(side: int, augment: Augment, random: np.random.Generator) -> int:
    """Draw the longer side of the laid picture."""
    if augment.style == "transvg":
        return max(1, round(side * (1 - int(random.integers(0, round((1 - augment.scale) * 20) + 1)) / 20)))
    return max(1, round(side * random.uniform(augment.scale, 1.0)))


def _crop(
    size: tuple[int, int], side: int, boxes: NDArray[np.float64], augment: Augment, random: np.random.Generator
) -> tuple[tuple[float, float, float, float], tuple[int, int] | None]:
    """Draw crops until one keeps every box [P, 4]: the crop in pixels of the picture, and `View.first`."""
    width, height = size
    frame = size  # where crops are drawn
    low = (max(1, int(width * augment.crop_min)), max(1, int(height * augment.crop_min)))
    high = size
    if augment.style == "transvg":
        ratio = round(side * random.choice([400, 500, 600]) / 640) / min(size)
        frame = (max(1, round(width * ratio)), max(1, round(height * ratio)))
        high = (min(frame[0], round(side * 600 / 640)), min(frame[1], round(side * 600 / 640)))
        low = (min(high[0], round(side * 384 / 640)), min(high[1], round(side * 384 / 640)))
    w, h = (random.integers(low[i], high[i] + 1, _TRIES) for i in range(2))
    x, y = random.integers(0, frame[0] - w + 1), random.integers(0, frame[1] - h + 1)
    drawn = np.stack([x, y, x + w, y + h], 1).astype(np.float64)  # [T, 4]
    to_source = np.array([width / frame[0], height / frame[1]] * 2)
    if augment.as_published:
        crops, kept = drawn * to_source, as_published.accepts(drawn, boxes / to_source).all(1)
    else:
        crops = np.round(drawn * to_source)
        crops[:, 2:] = np.maximum(crops[:, 2:], crops[:, :2] + 1)
        kept = (_visible(boxes, crops) >= augment.keep).all(1)
    x0, y0, x1, y1 = crops[kept.argmax()] if kept.any() else (0, 0, width, height)
    crop = (float(x0), float(y0), min(float(x1), width), min(float(y1), height))
    return crop, frame if augment.as_published else None


def _visible(boxes: NDArray[np.float64], crops: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of each box [P, 4] inside each crop [T, 4] -> [T, P]."""
    low = np.maximum(boxes[None, :, :2], crops[:, None, :2])
    high = np.minimum(boxes[None, :, 2:], crops[:, None, 2:])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    shares: NDArray[np.float64] = (high - low).clip(min=0).prod(-1) / np.maximum(area, np.finfo(np.float64).tiny)
    return shares


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


def render(image: Image.Image, view: View, out: Tensor | None = None) -> Tensor:
    """Lay an RGB picture on the canvas -> float [3, S, S] in 0..1, mean colour around it.

    Args:
        image: the picture that the view was planned for, or a reduced copy of it.
        view: where it lies.
        out: a canvas to write on.
    """
    side = view.letterbox.side
    canvas = torch.empty(3, side, side) if out is None else out
    left, top, right, bottom = laid_rectangle(view)
    rows = canvas[:, top:bottom]
    for empty in (canvas[:, :top], canvas[:, bottom:], rows[:, :, :left], rows[:, :, right:]):
        empty.copy_(_MEAN.expand_as(empty))
    laid = rows[:, :, left:right]
    if view.exact:
        laid.copy_(_as_pillow(image, view)).div_(255)
    else:
        laid.copy_(_resized(image, view)).div_(255)
        for name, factor in view.jitter:
            _adjust(laid, name, factor)
    return canvas


def _as_pillow(image: Image.Image, view: View) -> Tensor:
    """Crop, scale, jitter and mirror as TransVG does -> uint8 [3, h, w]."""
    if view.first:
        image = image.resize(view.first, Image.Resampling.BILINEAR)
    crop = _crop_of(image, view)
    laid = image if crop == (0, 0, *image.size) else image.crop(crop)
    laid = laid.resize(view.size, Image.Resampling.BILINEAR)
    for name, factor in view.jitter:
        laid = getattr(ImageEnhance, name)(laid).enhance(factor)
    if view.letterbox.flip:
        laid = ImageOps.mirror(laid)
    return torch.from_numpy(np.array(laid, dtype=np.uint8)).permute(2, 0, 1)


def _resized(image: Image.Image, view: View) -> Tensor:
    """Crop, scale and mirror -> uint8 [3, h, w]. Torch's filter is Pillow's, on wider registers."""
    x0, y0, x1, y1 = _crop_of(image, view)
    laid = torch.from_numpy(np.array(image, dtype=np.uint8)[y0:y1, x0:x1]).permute(2, 0, 1)[None]
    width, height = view.size
    if laid.shape[2:] != (height, width):
        laid = F.interpolate(laid, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return laid[0].flip(-1) if view.letterbox.flip else laid[0]


def _crop_of(image: Image.Image, view: View) -> tuple[int, int, int, int]:
    """Return the view's crop in whole pixels of an unmirrored, perhaps reduced picture."""
    x0, y0, x1, y1 = view.crop
    width, height = view.letterbox.width, view.letterbox.height
    if view.letterbox.flip:
        x0, x1 = width - x1, width - x0
    left, top = round(x0 * image.width / width), round(y0 * image.height / height)
    right, bottom = round(x1 * image.width / width), round(y1 * image.height / height)
    return min(left, image.width - 1), min(top, image.height - 1), max(right, left + 1), max(bottom, top + 1)


def _adjust(pixels: Tensor, name: str, factor: float) -> None:
    """Change the float [3, h, w] as Pillow's enhancer of that name does.

    Sums are numpy's, and products are added one by one: the same bits on any number of threads.
    """
    if name == "Brightness":
        pixels.mul_(factor)
    elif name == "Contrast":
        grey = sum(float(plane.numpy().mean()) * share for plane, share in zip(pixels, _GREY, strict=True))
        pixels.mul_(factor).add_(grey * (1 - factor))
    else:
        red, green, blue = (plane * (share * (1 - factor)) for plane, share in zip(pixels, _GREY, strict=True))
        pixels.mul_(factor).add_(red.add_(green).add_(blue))
    if factor > 1:  # below, every value stays between two that were in range
        pixels.clamp_(0, 1)


class Photo:
    """A photo, a file or its bytes, whose upright size is known before it is decoded; close it, or use `with`.

    Of an animation it is the first picture.

    Raises:
        InputError: missing, empty, truncated, too large or not a picture.
    """

    def __init__(self, source: Path | BytesIO) -> None:
        self.name = str(source) if isinstance(source, Path) else "The image"
        with _naming(self.name):
            self._image = Image.open(source_of(source) if isinstance(source, Path) else source)
            try:
                self._turned, self.size = self._shape()
            except BaseException:
                self.close()
                raise

    def _shape(self) -> tuple[bool, tuple[int, int]]:
        """Say whether the pixels lie on their side, and return the upright size."""
        width, height = self._image.size
        if width * height > MOST_PIXELS:
            raise InputError(f"{self.name} has {width} x {height} pixels, more than {MOST_PIXELS:,}: scale it down.")
        turned = self._image.getexif().get(0x0112) in (5, 6, 7, 8)
        return turned, (height, width) if turned else (width, height)

    def __enter__(self) -> Photo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._image.close()

    def decode(self, at_least: tuple[int, int] | None = None) -> Image.Image:
        """Return the picture as RGB, upright by its EXIF orientation.

        Args:
            at_least: a width and height that suffice; a JPEG may then come out reduced by 2, 4 or 8 to no less.

        Raises:
            InputError: it cannot be decoded.
        """
        with _naming(self.name):
            if at_least is not None and self._image.format == "JPEG":
                self._image.draft(None, at_least[::-1] if self._turned else at_least)
            ImageOps.exif_transpose(self._image, in_place=True)
            return _to_rgb(self._image, self.name)


def open_image(source: Path | BytesIO) -> Image.Image:
    """Open a photo, a file or its bytes, as RGB, upright by its EXIF orientation; of an animation its first picture.

    Raises:
        InputError: missing, empty, truncated, too large or not a picture.
    """
    with Photo(source) as photo:
        return photo.decode()


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Name the file in whatever Pillow raises; on broken bytes its decoders raise nearly anything."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own bound speaks first
            yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{name} does not exist: check the path.") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} has more than {MOST_PIXELS:,} pixels: scale it down.") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is not a picture this program can read: convert it to JPEG or PNG.") from error
    except Exception as error:
        raise InputError(f"{name} cannot be decoded ({error}): fetch or save it again.") from error


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise InputError(f"{name} holds floating-point pixels, whose white is not known: save it with 8 bits.")
    if image.mode.startswith("I"):  # 16-bit grey: scale, where Pillow would clip
        grey = np.asarray(image).astype(np.int64).clip(0, 65_535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        paper = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(paper, rgba).convert("RGB")
    return image.convert("RGB")
