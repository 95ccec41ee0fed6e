"""Coordinate conventions: what the numbers of an answer count, and in which order they stand. Named, never guessed."""

from __future__ import annotations

from dataclasses import dataclass

from epmvg.core.types import Box, InputError


@dataclass(frozen=True, slots=True)
class Unit:
    """A number v of a side that is `span` long means the share (v + offset) / span of it; no span is pixels."""

    about: str
    span: float | None = None
    offset: float = 0.0
    square: bool = False  # the sides are those of the square that the image was padded to, evenly on both sides
    corner: bool = False  # it was padded on the right and below only


INPUT = "input-pixels"
CELLS = "32-cells"

UNITS = {
    "pixels": Unit("pixels of the original image, upright"),
    INPUT: Unit("pixels of the picture that the system saw, whose input_width and input_height stand in each row"),
    "0-1": Unit("shares of the sides", 1.0),
    "0-1-square": Unit("shares of the side of the square that the picture was padded to (Shikra)", 1.0, square=True),
    "0-1-padded": Unit(
        "shares of the side of the square padded right and below (OWLv2)", 1.0, square=True, corner=True
    ),
    "0-100": Unit("hundredths of the sides (MiniGPT-v2)", 100.0),
    "0-1000": Unit("thousandths of the sides (Qwen2-VL, Qwen3-VL, InternVL)", 1000.0),
    "0-999": Unit("shares of the sides times 999 (DeepSeek-VL2)", 999.0),
    "1000-bins": Unit("one of 1,000 bins, which means its middle (Florence-2)", 1000.0, 0.5),
    "1024-bins": Unit("one of 1,024 bins, which means its start (PaliGemma)", 1024.0),
    CELLS: Unit("the first and last of 32 x 32 cells, each its middle; one row or column whole (Kosmos-2)", 32.0, 0.5),
}
ORDERS = ("xyxy", "yxyx", "xywh", "cxcywh")

Size = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Coordinates:
    """A unit and an order, written "0-1000:xyxy"."""

    unit: str
    order: str

    @classmethod
    def named(cls, text: str) -> Coordinates:
        """Read a convention's name.

        Raises:
            InputError: it names none.
        """
        unit, _, order = text.partition(":")
        if unit not in UNITS or order not in ORDERS:
            raise InputError(
                f"--coordinates {text} is no convention: give a unit of {', '.join(UNITS)}, a colon and an order of"
                f" {', '.join(ORDERS)}, for example 0-1000:xyxy."
            )
        return cls(unit, order)

    def __str__(self) -> str:
        return f"{self.unit}:{self.order}"

    @property
    def span(self) -> float | None:
        """What the far edge of a picture has as its number; None in pixels."""
        return UNITS[self.unit].span

    def corners(self, numbers: Box) -> Box:
        """Return four numbers as x0, y0, x1, y1, in the same unit."""
        a, b, c, d = numbers
        if self.order == "yxyx":
            return b, a, d, c
        if self.order == "cxcywh":
            return a - c / 2, b - d / 2, a + c / 2, b + d / 2
        return (a, b, a + c, b + d) if self.order == "xywh" else numbers

    def numbers(self, corners: Box) -> Box:
        """Return x0, y0, x1, y1 as four numbers of this order, in the same unit: the inverse of `corners`."""
        x0, y0, x1, y1 = corners
        if self.order == "yxyx":
            return y0, x0, y1, x1
        if self.order == "cxcywh":
            return (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0
        return (x0, y0, x1 - x0, y1 - y0) if self.order == "xywh" else corners

    def to_pixels(self, numbers: Box, size: Size | None, seen: Size | None = None) -> Box:
        """Return four numbers as x0, y0, x1, y1 in pixels of the original image.

        Args:
            size: width and height of that image; not needed where the unit is its pixels.
            seen: width and height of the resized picture, where the unit is its pixels.
        """
        x0, y0, x1, y1 = self.corners(numbers)
        if self.unit == "pixels":
            return x0, y0, x1, y1
        assert size is not None
        unit = UNITS[self.unit]
        across, down = seen if unit.span is None and seen is not None else (unit.span or 1.0, unit.span or 1.0)
        width, height = size
        left = top = 0.0
        if unit.square:
            side = max(width, height)
            if not unit.corner:
                left, top = (side - width) // 2, (side - height) // 2
            width = height = side
        near = far = unit.offset
        if self.unit == CELLS and (x0 == x1 or y0 == y1):
            near, far = 0.0, 1.0
        return (
            (x0 + near) * width / across - left,  # multiplied first: whole results stay whole
            (y0 + near) * height / down - top,
            (x1 + far) * width / across - left,
            (y1 + far) * height / down - top,
        )
