"""Boxes, labels and maps drawn on a picture, legible at any size."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import cycle, islice
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from epmvg.core.files import atomic_write
from epmvg.core.pixels import upright_rgb
from epmvg.core.types import Box, InputError

COLOURS = ("#ffd21f", "#4cc2ff", "#ff7a59", "#6ee7a0", "#f58ad0", "#c4a7ff", "#ffb454", "#5eead4")
"""Light enough for dark text, and told apart by people who see few colours (ordered after Okabe and Ito)."""

HALO = "#141414"

logger = logging.getLogger("epmvg")


def draw_boxes(
    image: Image.Image, boxes: Sequence[Box], labels: Sequence[str] | None = None, colours: Sequence[str] | None = None
) -> Image.Image:
    """Return a copy of a picture with boxes and labels drawn on it.

    Args:
        image: any mode; the copy is RGB, turned by its EXIF orientation.
        boxes: (x0, y0, x1, y1) in pixels of the picture; what lies outside is cut off, and one that is not a number is
            left out.
        labels: one a box. One that is wider than the picture is shortened; on a thumbnail there is room for none.
        colours: one a box, anything PIL understands; by default each different label has its own.

    Raises:
        InputError: there are not as many labels or colours as boxes, or a colour has no such name.
    """
    for name, given in (("labels", labels), ("colours", colours)):
        if given is not None and len(given) != len(boxes):
            raise InputError(f"There are {len(given)} {name} for {len(boxes)} boxes: give one a box.")
    inks = [_checked(colour) for colour in colours] if colours is not None else _own_colours(labels, len(boxes))
    drawn = upright_rgb(image)
    pen = ImageDraw.Draw(drawn)
    line = max(1, round(max(drawn.size) / 250))  # 2-3 px on a 640 px photo, the eye's hairline at any scale
    whole = [number for number, box in enumerate(boxes) if all(map(math.isfinite, box))]
    placed = [_outline(pen, boxes[number], inks[number], line, drawn.size) for number in whole]
    if labels is not None:
        _write_labels(pen, placed, [labels[number] for number in whole], [inks[number] for number in whole], drawn.size)
    return drawn


def draw_map(image: Image.Image, values: NDArray[np.float32]) -> Image.Image:
    """Return a copy of a picture under a map: what is high glows, what is low lies in the dark.

    Args:
        image: any mode; the copy is RGB, turned by its EXIF orientation.
        values: [height, width] of the picture, in 0..1.

    Raises:
        InputError: the map has not the picture's size.
    """
    upright = upright_rgb(image)
    if values.shape != (upright.height, upright.width):
        raise InputError(
            f"The map is {values.shape[1]} x {values.shape[0]}, the picture {upright.width} x {upright.height}."
        )
    pixels = np.asarray(upright, dtype=np.float32)
    glow = matplotlib.colormaps["inferno"](values)[..., :3].astype(np.float32) * 255
    light = 0.55 + 0.45 * values[..., None]  # the picture stays legible where the map is low
    share = 0.65 * values[..., None] ** 0.8
    return Image.fromarray((pixels * light * (1 - share) + glow * share).clip(0, 255).astype(np.uint8))


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Put pictures of one height into one, left to right."""
    gap = max(2, pictures[0].height // 80)
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) - 1)
    strip = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    x = 0
    for picture in pictures:
        strip.paste(picture, (x, 0))
        x += picture.width + gap
    return strip


def check_picture_name(file: Path) -> str:
    """Return the format in which a picture is written to a file of this name.

    Raises:
        InputError: its folder does not exist, or Pillow writes no pictures with this ending.
    """
    kind = Image.registered_extensions().get(file.suffix.lower())
    if kind not in Image.SAVE:
        raise InputError(f"{file} cannot be written: end the name in .png or .jpg.")
    if not file.parent.is_dir():
        raise InputError(f"{file} cannot be written: the folder {file.parent} does not exist.")
    return str(kind)


def save_picture(picture: Image.Image, file: Path) -> None:
    """Write a picture whole or not at all, in the format that the file's ending names.

    Raises:
        InputError: as `check_picture_name`, the disk refuses, or the format cannot hold the picture.
    """
    kind = check_picture_name(file)
    with atomic_write(file) as temporary:
        try:
            picture.save(temporary, format=kind)
        except (KeyError, ValueError) as error:
            raise InputError(f"{file} cannot be written ({error}): end the name in .png or .jpg.") from error


def _checked(colour: str) -> str:
    try:
        ImageColor.getrgb(colour)
    except ValueError as error:
        raise InputError(f"{colour!r} is not a colour: write it as #rrggbb or by an HTML name.") from error
    return colour


def _own_colours(labels: Sequence[str] | None, count: int) -> list[str]:
    if labels is None:
        return list(islice(cycle(COLOURS), count))
    names = list(dict.fromkeys(labels))
    return [COLOURS[names.index(label) % len(COLOURS)] for label in labels]


def _outline(pen: ImageDraw.ImageDraw, box: Box, ink: str, line: int, size: tuple[int, int]) -> Box:
    """Draw one box with a thin dark edge on both sides; return where it lies inside the picture."""
    x0, x1 = sorted(min(max(round(x), 0), size[0] - 1) for x in (box[0], box[2]))
    y0, y1 = sorted(min(max(round(y), 0), size[1] - 1) for y in (box[1], box[3]))
    edge = max(1, line // 3)
    pen.rectangle((x0 - edge, y0 - edge, x1 + edge, y1 + edge), outline=HALO, width=line + 2 * edge)
    pen.rectangle((x0, y0, x1, y1), outline=ink, width=line)
    return x0, y0, x1, y1


def _write_labels(
    pen: ImageDraw.ImageDraw, boxes: Sequence[Box], labels: Sequence[str], inks: Sequence[str], size: tuple[int, int]
) -> None:
    pixels = max(11.0, max(size) / 40)  # 11 px: smaller letters of this font run together
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size=pixels)
    margin = max(2, round(pixels / 4))
    height = round(pixels * 1.2) + 2 * margin
    if 3 * height > size[1]:  # a thumbnail: labels would hide what they name
        return
    taken: list[Box] = []
    for box, label, ink in zip(boxes, labels, inks, strict=True):
        text = _fit(_printable(label), font, size[0] - 2 * margin)
        _report_missing(text, font)
        if not text:
            continue
        width = round(font.getlength(text)) + 2 * margin
        plate = _free_place(box, width, height, size, taken)
        taken.append(plate)
        pen.rectangle(plate, fill=ink)
        pen.text((plate[0] + margin, (plate[1] + plate[3]) / 2), text, fill=HALO, font=font, anchor="lm")


def _report_missing(text: str, font: ImageFont.FreeTypeFont) -> None:
    """Log once in a process that a label's script is not in the font."""
    empty = bytes(font.getmask("\uffff"))
    if any(bytes(font.getmask(letter)) == empty for letter in text if not (letter.isascii() or letter.isspace())):
        _log_missing(font.getname()[0])


@lru_cache(maxsize=1)
def _log_missing(name: str | None) -> None:
    logger.warning("Labels are drawn in %s, which has no letters of some of their scripts: boxes stand for them.", name)


def _printable(label: str) -> str:
    """One line of at most 300 characters, without the half characters that no encoder takes."""
    return " ".join(label.encode("utf-8", "replace").decode("utf-8").split())[:300]


def _fit(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Shorten a text until it is at most `width` pixels wide; "" where not even a letter fits."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..." if text else ""


def _free_place(box: Box, width: int, height: int, size: tuple[int, int], taken: Sequence[Box]) -> Box:
    """Find the label's plate: above the box, below it or inside, whichever is first inside the picture and free."""
    x = min(max(box[0], 0), max(0, size[0] - 1 - width))
    tops = (box[1] - height, box[3] + 1, box[1], box[3] - height)
    inside = [min(max(y, 0), size[1] - 1 - height) for y in tops]
    plates = [(x, y, x + width, y + height) for y in inside]
    unmoved = [plate for plate, y in zip(plates, tops, strict=True) if plate[1] == y]
    free = [plate for plate in (*unmoved, *plates) if not any(_overlap(plate, other) for other in taken)]
    return free[0] if free else (unmoved or plates)[0]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
