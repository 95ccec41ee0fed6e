"""Parts of a split that are worth a score of their own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from epmvg.evaluation.metrics import Row

MOST_NAMES = 12  # a table that still fits beside the others; the rest is rare


@dataclass(frozen=True, slots=True)
class Grouping:
    """A question with a few answers, asked of each row."""

    title: str
    names_of: Callable[[Row], Sequence[str]]
    order: tuple[str, ...] = ()  # of the names; by how many rows they have where empty

    def names(self, rows: Sequence[Row]) -> list[str]:
        """List the names that occur."""
        counts = Counter(name for row in rows for name in self.names_of(row))
        if self.order:
            return [name for name in self.order if name in counts]
        return [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))][:MOST_NAMES]

    def select(self, rows: Sequence[Row], name: str) -> list[Row]:
        """Return the rows that have a name."""
        return [row for row in rows if name in self.names_of(row)]


def groupings(rows: Sequence[Row]) -> Iterator[tuple[Grouping, list[str]]]:
    """Yield the groupings that split these rows in at least two, with their names."""
    for grouping in GROUPINGS:
        names = grouping.names(rows)
        if len(names) > 1:
            yield grouping, names


def _field(key: str) -> Callable[[Row], list[str]]:
    def names_of(row: Row) -> list[str]:
        value: Any = row.get(key)
        values = value if isinstance(value, list) else [value]
        return [name for name in values if isinstance(name, str) and name]

    return names_of


def _part(row: Row) -> list[str]:
    """Data set and split by the row's own word, as an evaluation names its parts."""
    return [f"{row['dataset']} {row.get('split', '')}".strip()] if row.get("dataset") else []


LENGTHS = {2: "1 or 2 words", 4: "3 or 4 words", 8: "5 to 8 words"}
LONGEST = "9 words or more"


def _length(row: Row) -> list[str]:
    words = len(row["phrase"].split())
    return [next((name for most, name in LENGTHS.items() if words <= most), LONGEST)]


# COCO's bounds, in pixels of the original image.
SIZES = {32**2: "small (< 32² px)", 96**2: "medium (< 96² px)"}
LARGEST = "large"


def _size(row: Row) -> list[str]:
    x0, y0, x1, y1 = row["target"]
    area = (x1 - x0) * (y1 - y0)
    return [next((name for bound, name in SIZES.items() if area < bound), LARGEST)]


WITH, WITHOUT = "with", "without"

SIDE_WORDS = r"(left|right|top|bottom|upper|lower|front|back)(most|hand)?|middle|mid|cent(er|re|ral)|corner|edge|side"
COLOUR_WORDS = (
    r"black|white|gr[ae]y|red|blue|green|yellow|orange|brown|pink|purple|violet|tan|beige|turquoise|maroon|navy|teal|"
    r"gold(en)?|silver|blonde?|colou?rful|multi-?colou?red"
)
RELATION_WORDS = (
    r"next to|besides?|near(est|by)?|clos(e|er|est) to|behind|in front of|between|under(neath)?|beneath|above|below|"
    r"on top of|(left|right) of|against|around|facing|holding|wearing|carrying|riding|touching|talking to|looking at"
)


def _words(pattern: str) -> Callable[[Row], list[str]]:
    known = re.compile(rf"\b({pattern})\b", re.IGNORECASE)
    return lambda row: [WITH if known.search(row["phrase"]) else WITHOUT]


WHOLE, CUT = "read whole", "truncated"


def _reading(row: Row) -> list[str]:
    return [CUT if row.get("truncated") else WHOLE]


GROUPINGS = (
    Grouping("Part of the data", _part),
    Grouping("Kind of phrase", _field("kind")),
    Grouping("Type of thing", _field("types")),
    Grouping("Side words", _words(SIDE_WORDS), (WITH, WITHOUT)),
    Grouping("Colour words", _words(COLOUR_WORDS), (WITH, WITHOUT)),
    Grouping("Relation words", _words(RELATION_WORDS), (WITH, WITHOUT)),
    Grouping("Length of the phrase", _length, (*LENGTHS.values(), LONGEST)),
    Grouping("Longer than the model reads", _reading, (WHOLE, CUT)),
    Grouping("Size of the target", _size, (*SIZES.values(), LARGEST)),
)
