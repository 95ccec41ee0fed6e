"""Hits and misses to look at: which rows are shown, and their photos small enough to travel inside the page."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from epmvg.core import images as photos
from epmvg.core.types import Box, InputError
from epmvg.evaluation.metrics import Row, is_hit
from epmvg.evaluation.statistics import pair
from epmvg.report.runs import Run, SplitName

SIDE = 360  # px, the longer side of a thumbnail: sharp at a card's width, about 20 kB

Question = tuple[Row, ...]
"""The rows of one phrase, one a run."""


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo as the page shows it, in the pixels of the original."""

    width: float
    height: float
    data: str  # a data: address, "" where the photo could not be opened


@dataclass(frozen=True, slots=True)
class Card:
    """One phrase in one photo, with the true box and every run's."""

    rows: Question
    photo: Photo

    @property
    def phrase(self) -> str:
        return str(self.rows[0]["phrase"])

    @property
    def file(self) -> str:
        return Path(self.rows[0]["image"]).name

    @property
    def target(self) -> Box:
        return _box(self.rows[0], "target")

    @property
    def boxes(self) -> list[tuple[Box, float, bool]]:
        """Box, IoU and whether it is a hit, a run."""
        return [(_box(row, "box"), float(row["iou"]), is_hit(row)) for row in self.rows]


def make_gallery(runs: Sequence[Run], split: SplitName, count: int) -> list[tuple[str, int, list[Card]]]:
    """Choose at most `count` phrases of each group: its title, how many phrases it has, and the chosen ones."""
    shown = []
    for title, questions in _groups(runs, _questions(runs, split)):
        chosen = _choose(questions, count, f"{split} {title}")
        if chosen:
            shown.append((title, len(questions), _cards(runs, chosen)))
    return shown


def make_comparison(
    runs: Sequence[Run], split: SplitName, count: int, phrases: Sequence[str]
) -> tuple[str, list[Card]]:
    """Choose what is shown run beside run (Fig. 3): rows with one of `phrases`, or those that improved most.

    Improved is the IoU of the last run over the first; at most `count` are shown, one an image.
    """
    questions = _questions(runs, split)
    if phrases:
        wanted = {plain(phrase) for phrase in phrases}
        return "Chosen phrases", _cards(runs, [rows for rows in questions if plain(rows[0]["phrase"]) in wanted])
    best: dict[str, Question] = {}  # of each image, most improved first
    for rows in sorted(questions, key=lambda rows: rows[0]["iou"] - rows[-1]["iou"]):
        if rows[-1]["iou"] > rows[0]["iou"]:
            best.setdefault(rows[0]["image"], rows)
    title = f"Where {runs[-1].name} improves most on {runs[0].name}"
    return title, _cards(runs, list(best.values())[:count])


def plain(phrase: str) -> str:
    """Return what a phrase is compared by: its words, whatever their case and spaces."""
    return " ".join(phrase.casefold().split())


def _cards(runs: Sequence[Run], questions: Sequence[Question]) -> list[Card]:
    return [Card(rows, _photo(rows, _locate(rows[0]["image"], runs[0].folder))) for rows in questions]


def _questions(runs: Sequence[Run], split: SplitName) -> list[Question]:
    """The phrases that every run answered, with all answers."""
    questions: list[Question] = [(row,) for row in runs[0].answers[split]]
    for run in runs[1:]:
        met = pair([rows[0] for rows in questions], run.answers[split])
        earlier = {id(rows[0]): rows for rows in questions}
        questions = [(*earlier[id(first)], row) for first, row in met]
    return questions


def _groups(runs: Sequence[Run], questions: Sequence[Question]) -> list[tuple[str, list[Question]]]:
    """Sort questions by which runs are right about them."""
    right = {id(rows): tuple(is_hit(row) for row in rows) for rows in questions}

    def where(*patterns: tuple[bool, ...]) -> list[Question]:
        return [rows for rows in questions if right[id(rows)] in patterns]

    every, none = (True,) * len(runs), (False,) * len(runs)
    if len(runs) == 1:
        return [("Hits", where(every)), ("Misses", where(none))]
    if len(runs) == 2:
        return [
            (f"Only {runs[1].name} is right", where((False, True))),
            (f"Only {runs[0].name} is right", where((True, False))),
            ("Both are right", where(every)),
            ("Neither is right", where(none)),
        ]
    apart = [pattern for pattern in set(right.values()) if pattern not in (every, none)]
    return [("The runs disagree", where(*apart)), ("All are right", where(every)), ("None is right", where(none))]


def _choose(questions: Sequence[Question], count: int, seed: str) -> list[Question]:
    """Draw some at random, the same at every call, one an image as long as there are images."""
    drawn = random.Random(seed).sample(list(questions), len(questions))
    first = {rows[0]["image"]: rows for rows in reversed(drawn)}
    ahead = {id(rows) for rows in first.values()}
    return sorted(drawn, key=lambda rows: id(rows) not in ahead)[:count]


def _locate(image: str, run: Path) -> Path | None:
    """Find an image where the row says, seen from the run or from here."""
    return next((place for place in (run / image, Path(image)) if place.is_file()), None)


def _photo(rows: Question, file: Path | None) -> Photo:
    if file is not None:
        try:
            return thumbnail(file)
        except InputError:
            pass  # a photo that cannot be opened is shown as one that is not there
    boxes = [_box(rows[0], "target"), *(_box(row, "box") for row in rows)]
    return Photo(max(4.0, *(box[2] for box in boxes)) * 1.05, max(3.0, *(box[3] for box in boxes)) * 1.05, "")


def thumbnail(file: Path) -> Photo:
    """Return a photo small, upright by its EXIF orientation, with its own width and height.

    Raises:
        InputError: it cannot be opened.
    """
    with photos.ImageFile(file) as opened:
        return shrink(opened.decode((2 * SIDE, 2 * SIDE)), opened.size)  # a JPEG decodes at a fraction of its size


def shrink(picture: Image.Image, size: tuple[float, float]) -> Photo:
    """Return a picture small, to be shown in the pixels of an original of (width, height)."""
    small = picture.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    jpeg = io.BytesIO()
    small.save(jpeg, "JPEG", quality=80, optimize=True)
    return Photo(*size, "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode("ascii"))


def _box(row: Row, key: str) -> Box:
    x0, y0, x1, y1 = row[key]
    return x0, y0, x1, y1
