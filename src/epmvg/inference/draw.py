"""Boxes, labels and heatmaps drawn on images with Pillow."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from io import BytesIO
from itertools import cycle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from epmvg.core.files import atomic_write
from epmvg.core.images import upright_rgb
from epmvg.core.types import Box, InputError

COLORS = ("#ffd21f", "#4cc2ff", "#ff7a59", "#6ee7a0", "#f58ad0", "#c4a7ff", "#ffb454", "#5eead4")
"""Light enough for dark text, and distinct for color-blind readers (ordered after Okabe and Ito)."""

DARK = "#141414"

_FONT = resources.files("epmvg.inference") / "fonts" / "DejaVuSans.ttf"  # Pillow's own has no accents

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Suffixes of files that drawn images can be written to, and their formats."""

_MAX_SIDE = {"JPEG": 65_500, "WEBP": 16_383}
"""Pixels of the longest side that a format can hold."""

logger = logging.getLogger("epmvg")


def draw_boxes(image: Image.Image, boxes: Sequence[Box], labels: Sequence[str] | None = None) -> Image.Image:
    """Return a copy of an image with boxes and labels drawn on it, each different label in its own color.

    Args:
        image: any mode; the copy is RGB with the EXIF orientation applied.
        boxes: (x0, y0, x1, y1) in pixels; they are clipped to the image, and boxes that are not finite are skipped.
        labels: one per box; one wider than the image is shortened, and images of a few rows have none.

    Raises:
        InputError: the numbers of labels and boxes differ.
    """
    if labels is not None and len(labels) != len(boxes):
        raise InputError(f"There are {len(labels)} labels for {len(boxes)} boxes. Give one per box.")
    names: Sequence[object] = labels if labels is not None else range(len(boxes))
    colors = dict(zip(dict.fromkeys(names), cycle(COLORS), strict=False))
    drawn = upright_rgb(image)
    pen = ImageDraw.Draw(drawn)
    line = max(1, round(max(drawn.size) / 250))  # 2-3 px on a 640 px photo
    edge = max(1, line // 3)
    clipped: dict[int, Box] = {}
    for number, (name, box) in enumerate(zip(names, boxes, strict=True)):
        if not all(map(math.isfinite, box)):
            continue
        x0, x1 = sorted(min(max(round(x), 0), drawn.width - 1) for x in (box[0], box[2]))
        y0, y1 = sorted(min(max(round(y), 0), drawn.height - 1) for y in (box[1], box[3]))
        pen.rectangle((x0 - edge, y0 - edge, x1 + edge, y1 + edge), outline=DARK, width=line + 2 * edge)
        pen.rectangle((x0, y0, x1, y1), outline=colors[name], width=line)
        clipped[number] = (x0, y0, x1, y1)
    if labels is not None:
        _draw_labels(pen, [(box, labels[i], colors[labels[i]]) for i, box in clipped.items()], drawn.size)
    return drawn


def draw_heatmap(image: Image.Image, values: NDArray[np.float32]) -> Image.Image:
    """Return a copy of an image blended with a heatmap.

    Args:
        image: any mode; the copy is RGB with the EXIF orientation applied.
        values: [height, width] of the image, in 0..1.

    Raises:
        InputError: the heatmap and the image differ in size.
    """
    upright = upright_rgb(image)
    if values.shape != (upright.height, upright.width):
        raise InputError(
            f"The heatmap has shape {values.shape}. Give one of the image's {(upright.height, upright.width)}."
        )
    gray = Image.fromarray((values * 255).round().astype(np.uint8))
    heat = np.asarray(ImageOps.colorize(gray, "#000004", "#fcffa4", mid="#bc3754"), np.float32)
    alpha = 0.65 * values[..., None] ** 0.8
    pixels = np.asarray(upright, np.float32) * (0.55 + 0.45 * values[..., None])
    return Image.fromarray((pixels * (1 - alpha) + heat * alpha).clip(0, 255).astype(np.uint8))


def concatenate_images(images: Sequence[Image.Image]) -> Image.Image:
    """Return one image with images of one height side by side."""
    gap = max(2, images[0].height // 80)
    strip = Image.new("RGB", (sum(image.width + gap for image in images) - gap, images[0].height), "white")
    x = 0
    for image in images:
        strip.paste(image, (x, 0))
        x += image.width + gap
    return strip


def check_image_name(file: Path) -> None:
    """Check that an image can be written to a file of this name.

    Raises:
        InputError: the folder does not exist, or the suffix is not in `FORMATS`.
    """
    if file.suffix.lower() not in FORMATS:
        raise InputError(f"{file} cannot be written. Give a name that ends in {', '.join(FORMATS)}.")
    if not file.parent.is_dir():
        raise InputError(f"{file} cannot be written. The folder {file.parent} does not exist.")


def save_image(image: Image.Image, file: Path) -> None:
    """Write an RGB image atomically, in the format of the file name's suffix; scaled down where it is too large for it.

    Raises:
        InputError: as `check_image_name`, or a disk error.
    """
    check_image_name(file)
    kind = FORMATS[file.suffix.lower()]
    side = _MAX_SIDE.get(kind, max(image.size))
    if max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side))
        logger.warning("%s is scaled down to %d x %d pixels: %s has at most %d.", file, *image.size, kind, side)
    with atomic_write(file) as temporary:
        image.save(temporary, format=kind)


def _draw_labels(pen: ImageDraw.ImageDraw, labels: Sequence[tuple[Box, str, str]], size: tuple[int, int]) -> None:
    """Write (box, label, color) near each box."""
    pixels = max(11.0, max(size) / 40)  # smaller letters of this font run together
    font = ImageFont.truetype(BytesIO(_FONT.read_bytes()), size=pixels)
    margin = max(2, round(pixels / 4))
    height = round(pixels * 1.2) + 2 * margin
    if 3 * height > size[1]:  # labels would cover what they name
        return
    used: list[Box] = []
    for box, label, color in labels:
        text = _fit(label, font, size[0] - 2 * margin)
        if not text:
            continue
        _warn_missing_glyphs(text, font)
        width = round(font.getlength(text)) + 2 * margin
        background = _free_place(box, width, height, size, used)
        used.append(background)
        pen.rectangle(background, fill=color)
        middle = (background[1] + background[3]) / 2
        pen.text((background[0] + margin, middle), text, fill=DARK, font=font, anchor="lm")


def _fit(label: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Return a label in one line, shortened to `width` pixels; "" where not even one letter fits."""
    text = " ".join(label.encode("utf-8", "replace").decode("utf-8").split())[:300]  # without lone surrogates
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..." if text else ""


def _free_place(box: Box, width: int, height: int, size: tuple[int, int], used: Sequence[Box]) -> Box:
    """Return where a label goes: above, below or inside its box, the first inside the image that overlaps no other."""
    x = min(max(box[0], 0), max(0, size[0] - 1 - width))
    tops = (box[1] - height, box[3] + 1, box[1], box[3] - height)
    places = [(x, y, x + width, y + height) for y in tops if 0 <= y < size[1] - height] or [(x, 0, x + width, height)]
    return next((place for place in places if not any(_overlap(place, other) for other in used)), places[0])


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _warn_missing_glyphs(text: str, font: ImageFont.FreeTypeFont) -> None:
    missing = bytes(font.getmask("\uffff"))
    if any(bytes(font.getmask(letter)) == missing for letter in text if not (letter.isascii() or letter.isspace())):
        _log_missing_glyphs(font.getname()[0])


@lru_cache(maxsize=1)  # once per process
def _log_missing_glyphs(name: str | None) -> None:
    logger.warning("The font %s of drawn labels has no letters of some of their scripts.", name)
