"""The convention that the boxes of a whole data set were written in, told from how they fit their images.

A single odd box is a slip; a tenth of all boxes leaving their images while another reading fits nearly all is a wrong
convention, and so are numbers that never pass 100 or 1000 in images of several times that size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from epmvg.core.types import Box

SLACK = 1.0
"""Pixels a box may leave its image: files round, and count from 0 or 1."""

FEWEST = 20
"""Boxes below which nothing is said about a convention."""

ODD = 0.1
"""Share of boxes that must not fit as they are read before another reading is tried."""

NEARLY_ALL = 0.98
"""Share of boxes that must fit in that other reading."""

GRIDS = {100: "box-0-100", 1000: "box-0-1000"}
"""Scales that boxes are normalised to, and the kind of finding that says so."""

_REACH = 0.8  # of such a scale that the farthest edges must pass, to the right and below
_LARGER = 1.4  # times the scale: both sides of images in which boxes below it are no accident

Size = tuple[int, int]

READINGS = {
    "box-corners": "as corners",
    "box-sizes": "with the corners as x, y, width, height",
    "box-centre": "as centre x, centre y, width, height",
    "box-0-100": "as per cent of the sides",
    "box-0-1000": "as thousandths of the sides",
}
"""Kind of finding -> how the four numbers would have to be read, the likelier first."""


def beyond(box: Box, size: Size | None) -> float:
    """Return how far a box leaves its image, in pixels."""
    x0, y0, x1, y1 = box
    least = max(-x0, -y0)
    return max(least, x1 - size[0], y1 - size[1]) if size else least


def fits(box: Box, size: Size) -> bool:
    """Say whether a box is one, and lies in its image."""
    x0, y0, x1, y1 = box
    return x1 > x0 and y1 > y0 and beyond(box, size) <= SLACK


@dataclass(slots=True)
class Convention:
    """Counts, over a data set, of how many boxes fit their images in which reading."""

    boxes: int = 0
    small: int = 0  # no number above 1
    framed: int = 0  # boxes whose image's size is known
    misfits: int = 0
    fitting: dict[str, int] = field(default_factory=lambda: dict.fromkeys(READINGS, 0))
    right: dict[int, float] = field(default_factory=lambda: dict.fromkeys(GRIDS, 0.0))  # the farthest edges by scale
    bottom: dict[int, float] = field(default_factory=lambda: dict.fromkeys(GRIDS, 0.0))
    larger: dict[int, int] = field(default_factory=lambda: dict.fromkeys(GRIDS, 0))  # boxes in much larger images
    positive: int = 0  # start in their image and have a width and height
    across: float = 0.0  # the farthest right edge, as a share of the image's width
    down: float = 0.0

    def add(self, box: Box, size: Size | None) -> None:
        """Count a finite box (x0, y0, x1, y1), read from [x, y, x1 - x0, y1 - y0]."""
        x0, y0, x1, y1 = box
        width, height = x1 - x0, y1 - y0
        self.boxes += 1
        self.small += max(abs(x0), abs(y0), abs(width), abs(height)) <= 1
        if size is None or not all(size):
            return
        self.framed += 1
        self.misfits += not fits(box, size)
        corners = (x0, y0, width, height)
        self.fitting["box-corners"] += fits(corners, size)
        self.fitting["box-sizes"] += fits((x0, y0, x0 + x1, y0 + y1), size)
        centred = (x0 - width / 2, y0 - height / 2, x0 + width / 2, y0 + height / 2)
        self.fitting["box-centre"] += fits(centred, size)
        for grid, name in GRIDS.items():
            whole = fits(box, (grid, grid))
            if whole or fits(corners, (grid, grid)):
                self.fitting[name] += 1
                self.right[grid] = max(self.right[grid], x1 if whole else width)
                self.bottom[grid] = max(self.bottom[grid], y1 if whole else height)
            self.larger[grid] += min(size) > _LARGER * grid
        self.positive += x0 >= -SLACK and y0 >= -SLACK and width > 0 and height > 0
        self.across, self.down = max(self.across, x1 / size[0]), max(self.down, y1 / size[1])

    def verdict(self) -> tuple[str, str] | None:
        """Return (kind of finding, why) if the whole data set is written in another convention.

        Where several readings fit, the kind is the likeliest one's, and `why` names the others.
        """
        if self.boxes >= FEWEST and self.small >= NEARLY_ALL * self.boxes:
            return "box-0-1", f"no number is above 1 in {self.small:,} of {self.boxes:,} boxes"
        if self.framed < FEWEST:
            return None
        below = self._far_below()
        if below is not None or self.misfits < ODD * self.framed:
            return below
        odd = f"as they are read, {self.misfits:,} of {self.framed:,} boxes do not fit their images"
        likely = [
            name for name, count in self.fitting.items() if count >= NEARLY_ALL * self.framed and self._spans(name)
        ]
        if likely:
            others = "".join(f"; {READINGS[name]}, {self.fitting[name]:,}" for name in likely[1:])
            return likely[0], f"{odd}; {READINGS[likely[0]]}, {self.fitting[likely[0]]:,} do{others}"
        ratio = max(self.across, self.down)
        if self.positive >= NEARLY_ALL * self.framed and 1.1 < ratio < 10 and min(self.across, self.down) > 0.8 * ratio:
            return "box-scaled", f"{odd}; on copies {ratio:.2g} times as large all would"
        return None

    def _spans(self, name: str) -> bool:
        """Say whether boxes reach far enough to be of a scale."""
        grid = next((grid for grid, kind in GRIDS.items() if kind == name), None)
        return grid is None or min(self.right[grid], self.bottom[grid]) > _REACH * grid

    def _far_below(self) -> tuple[str, str] | None:
        """Tell boxes that stay below a scale in images that are much larger than it."""
        for grid, name in GRIDS.items():
            within = self.fitting[name]
            fit = within >= NEARLY_ALL * self.framed and self._spans(name)
            if fit and self.larger[grid] >= max(FEWEST, ODD * self.framed):
                farthest = max(self.right[grid], self.bottom[grid])
                why = f"no edge is beyond {grid} in {within:,} of {self.framed:,} boxes, the farthest at {farthest:g}"
                return name, f"{why}, and {self.larger[grid]:,} are of images far larger"
        return None
