"""Views of a picture and its phrases: training's scale, crop, flip and jitter.

Geometry is planned first (`View`, a pure function of sizes, boxes and a random generator) and rendered later, so that
a view can be stored, repeated and tested without a picture, and a photo is decoded no finer than its view needs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from epmvg.core.geometry import Letterbox
from epmvg.core.types import Box
from epmvg.data.views import MEAN_COLOUR, View, laid_rectangle

_MEAN = torch.tensor(MEAN_COLOUR).view(3, 1, 1)

_SIDE = r"\b(left|right)(?=(?:most|hand|handed|side|sided|er|est|wards?)?\b)"
_SIDE_WORD = re.compile(_SIDE, re.IGNORECASE)
_PLACE_WORD = re.compile(
    rf"{_SIDE}|\b(top|bottom|middle|mid|cent(er|re|ral)|upper|lower|corner|edge)(most)?\b", re.IGNORECASE
)

_SIDE_FOLLOWS = """
on to from at in of and or the far top bottom upper lower front back middle center centre corner edge row most very
extreme farthest furthest directly first second third fourth 1st 2nd 3rd 4th his her its their my your our s facing
faces looking looks pointing points turned turning turns leaning leans heading walking moving going
"""
"""Words after which left and right are sides: "on the left", "far right", "her right arm"."""

_SIDE_PRECEDES = "of side hand hands handed most corner edge half end part third quarter portion , . ; : /"
"""Words before which they are, whatever stands ahead of them: "the man left of the car", "zebra right, eating"."""

_NO_SIDE_PRECEDES = """
behind next in on at by over under above below beneath underneath beside near before after between against across
through around along inside outside into onto up down off out away alone there here now to from as about where when
angle angles way thing time size order
"""
"""Words before which they may mean something else: "right behind", "left on the plate", "the right way"."""

_PLACES = "on far top bottom upper lower"  # after which they are sides even so: "bottom right behind the cup"
_NO_SIDE_FOLLOWS = "all is are was were be been being has have had just got gets"
_FOLLOWS, _PRECEDES, _OTHERWISE, _EVEN_SO, _NEVER = (
    frozenset(words.split()) for words in (_SIDE_FOLLOWS, _SIDE_PRECEDES, _NO_SIDE_PRECEDES, _PLACES, _NO_SIDE_FOLLOWS)
)
_ON_THE = re.compile(r"\b(on|to|at|in|from) the$")
_REMAINS = re.compile(r"\b(last|only|remaining|still|nothing|any|no|all)\b", re.IGNORECASE)  # "the last slice left"
_TOKEN = re.compile(r"[^\W_]+|[^\w\s]")

_GREY = (0.299, 0.587, 0.114)  # of red, green and blue, as Pillow

_TRIES = 20  # crops drawn before the picture stays whole (TransVG)


@dataclass(frozen=True, slots=True)
class Augment:
    """How training views vary; every probability 0 gives the evaluation view.

    `scale`: the longer side becomes this share of the canvas, drawn between it and 1. `crop`: probability of a crop
    whose sides are at least `min_crop` of the picture's; a crop shows at least the share `min_visible` of each target,
    and a picture asked about by place ("on the left") is never cropped. `color_jitter`: probability of changing
    brightness, contrast and saturation by up to 40 %. `translate`: probability of a random place on the canvas.

    `recipe="transvg"` draws sizes and crops as TransVG does (SPEC_transvg 7.4): sizes in steps of 1/20 of the canvas
    (640, 608, ... 448 with `scale` 0.7) and crops of 384 to 600 px from a picture whose shorter side is 400, 500 or
    600 px, on a canvas of 640.
    """

    horizontal_flip: float = 0.0
    crop: float = 0.0
    min_crop: float = 0.6
    min_visible: float = 0.8
    scale: float = 1.0
    color_jitter: float = 0.0
    translate: float = 0.0
    recipe: Literal["default", "transvg"] = "default"

    def finest(self, side: int) -> int:
        """Longer side, pixels, at which a kept picture is as fine as any view of it on a canvas of `side`."""
        share = 1.0 if not self.crop else self.min_crop if self.recipe == "default" else 384 / 600
        return math.ceil(side / share)


def swap_sides(phrase: str) -> str:
    """Swap left and right as words ("leftmost" too, "bright" never), keeping the letters' case.

    A phrase in which one of them may not be a side ("right behind the car") stays as it is.
    """
    if not sides_are_clear(phrase):
        return phrase

    def other(match: re.Match[str]) -> str:
        word = match.group(1)
        return cased_like(word, "right" if word.lower() == "left" else "left")

    return _SIDE_WORD.sub(other, phrase)


def sides_are_clear(phrase: str) -> bool:
    """Say whether each "left" and "right" of a phrase, if it has any, is of a form that names a side.

    "the man on the right", "leftmost cup" and "bike left" are; "right behind the car", "all right" and "the last slice
    left" are not.
    """
    return all(_is_side(phrase, match) for match in _SIDE_WORD.finditer(phrase))


def _is_side(phrase: str, match: re.Match[str]) -> bool:
    if phrase[match.end() : match.end() + 1].isalpha():  # leftmost, righthand
        return True
    before, after = _TOKEN.findall(phrase[: match.start()].lower()), _TOKEN.findall(phrase[match.end() :].lower())
    previous, following = before[-1] if before else "", after[0] if after else ""
    if following == "-" and len(after) > 1:
        return after[1] in _PRECEDES
    if following in _PRECEDES:
        return previous != "all"
    if previous in _FOLLOWS:
        return following not in _OTHERWISE or previous in _EVEN_SO or _ON_THE.search(" ".join(before)) is not None
    if previous in ("", ",", ".", ";", ":"):
        return following not in _OTHERWISE
    return not following and previous not in _NEVER and not _REMAINS.search(phrase)


def cased_like(word: str, other: str) -> str:
    """Write another word in the case of a word: small, Capitalised or UPPER."""
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other


def names_place(phrase: str) -> bool:
    """Say whether a phrase names a place in the picture, so that cropping could make it false."""
    return _PLACE_WORD.search(phrase) is not None


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
    flip = bool(random.random() < augment.horizontal_flip) and all(map(sides_are_clear, phrases))
    crop = (0.0, 0.0, float(width), float(height))
    if random.random() < augment.crop and not any(map(names_place, phrases)):
        crop = _crop(size, side, np.array(boxes, dtype=np.float64).reshape(-1, 4), augment, random)
    x0, y0, x1, y1 = (width - crop[2], crop[1], width - crop[0], crop[3]) if flip else crop
    scale = _longest(side, augment, random) / max(x1 - x0, y1 - y0)
    laid = (max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale)))
    if random.random() < augment.translate:
        left, top = int(random.integers(0, side - laid[0] + 1)), int(random.integers(0, side - laid[1] + 1))
    else:
        left, top = round((side - laid[0]) / 2 - 0.1), round((side - laid[1]) / 2 - 0.1)
    scale_x, scale_y = laid[0] / (x1 - x0), laid[1] / (y1 - y0)
    letterbox = Letterbox(width, height, side, scale_x, scale_y, left - x0 * scale_x, top - y0 * scale_y, flip)
    jitter: tuple[tuple[str, float], ...] = ()
    if random.random() < augment.color_jitter:
        names = random.permutation(["Brightness", "Contrast", "Color"])
        jitter = tuple((str(name), float(random.uniform(0.6, 1.4))) for name in names)
    return View(letterbox, (x0, y0, x1, y1), laid, jitter)


def _longest(side: int, augment: Augment, random: np.random.Generator) -> int:
    """Draw the longer side of the laid picture."""
    if augment.recipe == "transvg":
        return max(1, round(side * (1 - int(random.integers(0, round((1 - augment.scale) * 20) + 1)) / 20)))
    return max(1, round(side * random.uniform(augment.scale, 1.0)))


def _crop(
    size: tuple[int, int], side: int, boxes: NDArray[np.float64], augment: Augment, random: np.random.Generator
) -> tuple[float, float, float, float]:
    """Draw crops until one keeps every box [P, 4], and return it in pixels of the image."""
    width, height = size
    frame = size  # where crops are drawn
    low = (max(1, int(width * augment.min_crop)), max(1, int(height * augment.min_crop)))
    high = size
    if augment.recipe == "transvg":
        ratio = round(side * random.choice([400, 500, 600]) / 640) / min(size)
        frame = (max(1, round(width * ratio)), max(1, round(height * ratio)))
        high = (min(frame[0], round(side * 600 / 640)), min(frame[1], round(side * 600 / 640)))
        low = (min(high[0], round(side * 384 / 640)), min(high[1], round(side * 384 / 640)))
    w, h = (random.integers(low[i], high[i] + 1, _TRIES) for i in range(2))
    x, y = random.integers(0, frame[0] - w + 1), random.integers(0, frame[1] - h + 1)
    drawn = np.stack([x, y, x + w, y + h], 1).astype(np.float64)  # [T, 4]
    crops = np.round(drawn * np.array([width / frame[0], height / frame[1]] * 2))
    crops[:, 2:] = np.maximum(crops[:, 2:], crops[:, :2] + 1)
    kept = (_visible(boxes, crops) >= augment.min_visible).all(1)
    x0, y0, x1, y1 = crops[kept.argmax()] if kept.any() else (0, 0, width, height)
    return float(x0), float(y0), min(float(x1), width), min(float(y1), height)


def _visible(boxes: NDArray[np.float64], crops: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of each box [P, 4] inside each crop [T, 4] -> [T, P]."""
    low = np.maximum(boxes[None, :, :2], crops[:, None, :2])
    high = np.minimum(boxes[None, :, 2:], crops[:, None, 2:])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    shares: NDArray[np.float64] = (high - low).clip(min=0).prod(-1) / np.maximum(area, np.finfo(np.float64).tiny)
    return shares


def pad_of(view: View) -> Tensor:
    """Bool [S, S], True where the view has no picture."""
    left, top, right, bottom = laid_rectangle(view)
    image_mask = torch.ones(view.letterbox.side, view.letterbox.side, dtype=torch.bool)
    image_mask[top:bottom, left:right] = False
    return image_mask


def render(image: Image.Image, view: View, out: Tensor | None = None) -> Tensor:
    """Render a training view of an RGB image -> float [3, S, S] in 0..1, mean colour around it.

    Args:
        image: the picture that the view was planned for, or a reduced copy of it.
        view: where it lies.
        out: a canvas to write on.
    """
    side = view.letterbox.side
    image_size = torch.empty(3, side, side) if out is None else out
    left, top, right, bottom = laid_rectangle(view)
    rows = image_size[:, top:bottom]
    for empty in (image_size[:, :top], image_size[:, bottom:], rows[:, :, :left], rows[:, :, right:]):
        empty.copy_(_MEAN.expand_as(empty))
    laid = rows[:, :, left:right]
    laid.copy_(_resized(image, view)).div_(255)
    for name, factor in view.jitter:
        _adjust(laid, name, factor)
    return image_size


def _resized(image: Image.Image, view: View) -> Tensor:
    """Crop, scale and mirror -> uint8 [3, h, w]. Torch's filter is Pillow's, on wider registers."""
    x0, y0, x1, y1 = _crop_in(image, view)
    laid = torch.from_numpy(np.array(image, dtype=np.uint8)[y0:y1, x0:x1]).permute(2, 0, 1)[None]
    width, height = view.size
    if laid.shape[2:] != (height, width):
        laid = F.interpolate(laid, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return laid[0].flip(-1) if view.letterbox.flip else laid[0]


def _crop_in(image: Image.Image, view: View) -> tuple[int, int, int, int]:
    """Return the view's crop in whole pixels of an unmirrored, perhaps reduced image."""
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
