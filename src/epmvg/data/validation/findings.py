"""What was found, with the first examples of each kind, in words that are safe to print anywhere."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from epmvg.core.types import Box
from epmvg.data.validation.kinds import KINDS, Kind

EXAMPLES = 6
"""Kept of each kind, one an image as long as there are images."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row or image, to be looked at."""

    where: str  # "line 12", or what a record calls itself
    note: str = ""
    image: str = ""
    phrase: str = ""
    boxes: tuple[Box, ...] = ()  # x0, y0, x1, y1 in pixels of the image


@dataclass(slots=True)
class Finding:
    """All of one kind."""

    name: str
    count: int
    unit: str  # what is counted: rows, boxes, phrases, images, splits
    examples: list[Example]
    note: str = ""
    rows: list[str] = field(default_factory=list)  # where each of them stands, if they were asked for

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        rows = [
            {"where": one.where, "note": one.note, "image": one.image, "phrase": one.phrase, "boxes": one.boxes}
            for one in self.examples
        ]
        head = {"kind": self.name, **asdict(self.kind), "count": self.count, "unit": self.unit, "note": self.note}
        return head | {"examples": rows, "rows": self.rows}


@dataclass(slots=True)
class Findings:
    """Counts by kind, the first examples, and where all stand."""

    counts: Counter[str] = field(default_factory=Counter)
    units: dict[str, str] = field(default_factory=dict)
    examples: dict[str, list[Example]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    rows: dict[str, list[str]] = field(default_factory=dict)
    copies: set[str] = field(default_factory=set)  # rows that stand there before, id and all
    bad_images: set[Path] = field(default_factory=set)

    def add(self, name: str, example: Example, *, unit: str = "rows", count: int = 1) -> None:
        """Count something of a kind, keeping it as an example while there is room."""
        self.counts[name] += count
        self.units[name] = unit
        if count and example.where:
            self.rows.setdefault(name, []).append(example.where)
        kept = self.examples.setdefault(name, [])
        if len(kept) < EXAMPLES and not (example.image and any(one.image == example.image for one in kept)):
            kept.append(example)

    def drop(self, *names: str) -> int:
        """Forget kinds that another finding explains, and return how many there were."""
        for name in names:
            self.examples.pop(name, None)
            self.rows.pop(name, None)
        return sum(self.counts.pop(name, 0) for name in names)

    def listed(self) -> list[Finding]:
        """Return the findings, errors first, most frequent first."""
        found = [
            Finding(
                name, count, self.units[name], self.examples[name], self.notes.get(name, ""), self.rows.get(name, [])
            )
            for name, count in self.counts.items()
        ]
        return sorted(found, key=lambda one: (one.kind.weight, -one.count, one.name))


def legible(text: str, most: int = 120) -> str:
    """Return a text that can be printed anywhere: characters that do not show are spelled out, long texts cut."""
    cut = text if len(text) <= most else text[: most - 1] + "…"
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode("ascii") for char in cut
    )
