"""Whether numbers can be of the convention they are said to be of, and which other one would fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from epmvg.core.types import Box, InputError, Sample
from epmvg.evaluation.evaluate import overlaps
from epmvg.evaluation.external.coordinates import CELLS, INPUT, ORDERS, UNITS, Coordinates, Size

FEW = 10
"""Boxes of which all may be tiny, or wrong, by chance."""

MOST = 500
"""Boxes that other conventions are tried on."""

SHARE = 0.1
"""Of boxes that cannot be right: more are warned of."""

GAIN = 0.2
"""Mean IoU by which another convention has to be better to be named; the right one gains nearly all there is."""


@dataclass(frozen=True, slots=True)
class Given:
    """Four numbers of an answer, and what is needed to read them."""

    numbers: Box
    size: Size | None  # width and height of the original image, pixels, where they are known
    seen: Size | None  # of the resized image that the system saw
    target: Box  # xyxy, pixels of the original image


@dataclass(frozen=True, slots=True)
class Fit:
    """How boxes look when they are read in a convention."""

    boxes: int
    inverted: int  # end before they begin
    sized: int  # whose image's size is known
    beyond: int  # of those, reach outside their image by more than a hundredth of its side and a pixel
    better: str | None  # another convention, in which the mean IoU is far higher

    @classmethod
    def of(cls, given: Sequence[Given], convention: Coordinates) -> Fit:
        """Count what cannot be right."""
        read = [(convention.to_pixels(one.numbers, one.size, one.seen), one.size) for one in given]
        inverted = sum(x1 < x0 or y1 < y0 for (x0, y0, x1, y1), _ in read)
        sized = [(box, size) for box, size in read if size]
        beyond = sum(_reaches_beyond(box, size) for box, size in sized)
        return cls(len(given), inverted, len(sized), beyond, _better(given[:MOST], convention))

    def warnings(self, convention: Coordinates) -> list[str]:
        """Say in a sentence each what should not be, if there is anything."""
        said = []
        if self.inverted > SHARE * self.boxes:
            said.append(f"{self.inverted:,} of {self.boxes:,} boxes end before they begin")
        if self.beyond > SHARE * self.sized:
            said.append(f"{self.beyond:,} of {self.sized:,} boxes reach beyond their image")
        if self.better:
            said.append(f"the mean IoU would be far higher if the numbers were {self.better}")
        if not said:
            return []
        return [f"Read as {convention}, {'; '.join(said)}: check what --coordinates names."]


def doubtful_data(records: Sequence[Sample], name: str) -> list[str]:
    """Say in a sentence that the data's own boxes do not fit their images, if many do not."""
    sized = [(record.box, record.size) for record in records if record.size]
    beyond = sum(_reaches_beyond(box, size) for box, size in sized)
    if beyond <= SHARE * len(sized):
        return []
    return [
        f"{beyond:,} of {len(sized):,} boxes of the data reach beyond their image, so they may be of another convention"
        f" than [x, y, w, h]: see epmvg data check {name}."
    ]


def refuse_misfit(given: Sequence[Given], convention: Coordinates, fit: Fit, file: Path) -> None:
    """Refuse a file whose numbers show that they were made in another convention.

    Raises:
        InputError: most are beyond the unit's span or inverted, or all are shares of one.
    """
    span = convention.span
    corners = [convention.corners(one.numbers) for one in given]
    beyond = [box for box in corners if span is not None and (max(box) > 1.1 * span or min(box) < -0.1 * span)]
    if 2 * len(beyond) > len(corners):
        raise InputError(
            f"{file}: {len(beyond):,} of {len(corners):,} boxes lie far outside 0 to {span:g}, the first"
            f" {list(beyond[0])}: name what they count with --coordinates{_hint(fit)}."
        )
    if span != 1.0 and len(corners) >= FEW and max(map(max, corners)) <= 1:
        raise InputError(
            f"{file}: no number exceeds 1, so {convention} cannot be right: name what they count with"
            f" --coordinates{_hint(fit)}."
        )
    if fit.boxes >= FEW and 2 * fit.inverted > fit.boxes:
        raise InputError(
            f"{file}: {fit.inverted:,} of {fit.boxes:,} boxes end before they begin when read as {convention}: name"
            f" their order with --coordinates{_hint(fit)}."
        )


def _hint(fit: Fit) -> str:
    return f" ({fit.better} would fit)" if fit.better else ""


def _reaches_beyond(box: Box, size: Size) -> bool:
    (x0, y0, x1, y1), (width, height) = box, size
    across, down = 1 + 0.01 * width, 1 + 0.01 * height
    return min(x0, x1) < -across or min(y0, y1) < -down or max(x0, x1) > width + across or max(y0, y1) > height + down


def _better(given: Sequence[Given], convention: Coordinates) -> str | None:
    """Name another convention in which the boxes lie far better on their targets."""
    if len(given) < FEW or convention.unit == CELLS:  # cells are written as nothing else is
        return None
    own = _mean_iou(given, convention)
    units = UNITS.keys() - {CELLS}
    if not all(one.seen for one in given):
        units -= {INPUT}
    if not all(one.size for one in given):
        units = {"pixels"}
    others = [Coordinates(unit, order) for unit in UNITS if unit in units for order in ORDERS]
    iou, best = max(((_mean_iou(given, other), other) for other in others), key=lambda one: one[0], default=(0.0, None))
    return str(best) if best is not None and iou > own + GAIN and iou > 2 * own else None


def _mean_iou(given: Sequence[Given], convention: Coordinates) -> float:
    boxes = [convention.to_pixels(one.numbers, one.size, one.seen) for one in given]
    return sum(overlaps(boxes, [one.target for one in given])) / len(given)
