"""Correct and wrong boxes to look at: which phrases are shown, with images small enough to be part of the page."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from epmvg.core.images import ImageFile
from epmvg.core.types import InputError
from epmvg.evaluation.metrics import Row, is_correct
from epmvg.evaluation.samples import plain_phrase
from epmvg.evaluation.statistics import pair
from epmvg.report.runs import Run

THUMBNAIL = 360  # px, the longer side: sharp at a card's width, about 20 kB

Rows = tuple[Row, ...]
"""The prediction rows of one phrase, one per run."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """An image as the page shows it, in the pixels of the original."""

    width: float
    height: float
    src: str  # a data: address, "" where the image cannot be opened


@dataclass(frozen=True, slots=True)
class Card:
    """One phrase and its image, with the target and every run's box."""

    rows: Rows
    image: Thumbnail


@dataclass(frozen=True, slots=True)
class Group:
    """Cards under a title."""

    title: str
    total: int  # of the phrases that the cards are chosen from
    cards: list[Card]


def make_gallery(runs: Sequence[Run], split: str, count: int) -> list[Group]:
    """Choose at most `count` phrases at random of each group: by which runs are correct."""
    names = [run.name for run in runs]
    groups: dict[tuple[bool, ...], list[Rows]] = {}
    for rows in _paired(runs, split):
        groups.setdefault(tuple(is_correct(row) for row in rows), []).append(rows)
    shown = []
    for pattern, members in sorted(groups.items(), key=lambda item: (sum(item[0]) in (0, len(runs)), item[0])):
        correct = [name for name, hit in zip(names, pattern, strict=True) if hit]
        title = "All correct" if len(correct) == len(runs) else f"Correct: {', '.join(correct) or 'none'}"
        chosen = random.Random(f"{split} {pattern}").sample(members, min(count, len(members)))  # the same at every call
        if chosen:
            shown.append(Group(title, len(members), _cards(runs, chosen)))
    return shown


def make_comparison(runs: Sequence[Run], split: str, count: int, phrases: Sequence[str]) -> Group:
    """Choose rows with one of `phrases`, or at most `count` whose IoU improves most from the first run to the last."""
    every = _paired(runs, split)
    if phrases:
        wanted = {plain_phrase(phrase) for phrase in phrases}
        chosen = [rows for rows in every if plain_phrase(rows[0]["phrase"]) in wanted]
        return Group("Chosen phrases", len(chosen), _cards(runs, chosen))
    improved: dict[str, Rows] = {}  # one per image, most improved first
    for rows in sorted(every, key=lambda rows: rows[0]["iou"] - rows[-1]["iou"]):
        if rows[-1]["iou"] > rows[0]["iou"]:
            improved.setdefault(rows[0]["image"], rows)
    title = f"Where {runs[-1].name} improves most on {runs[0].name}"
    return Group(title, len(improved), _cards(runs, list(improved.values())[:count]))


def _paired(runs: Sequence[Run], split: str) -> list[Rows]:
    """Return the rows of phrases that every run predicted."""
    paired: list[Rows] = [(row,) for row in runs[0].predictions[split]]
    for run in runs[1:]:
        before = {id(rows[0]): rows for rows in paired}
        pairs = pair([rows[0] for rows in paired], run.predictions[split])
        paired = [(*before[id(first)], row) for first, row in pairs]
    return paired


def _cards(runs: Sequence[Run], phrases: Sequence[Rows]) -> list[Card]:
    return [Card(rows, _image(rows, runs[0].folder)) for rows in phrases]


def _image(rows: Rows, folder: Path) -> Thumbnail:
    """Open the image of a phrase, relative to the run or to the current folder."""
    path = rows[0]["image"]
    file = next((file for file in (folder / path, Path(path)) if file.is_file()), None)
    try:
        if file is not None:
            return thumbnail(file)
    except InputError:
        pass  # shown like an image that is missing
    boxes = [rows[0]["target"], *(row["box"] for row in rows if row["box"])]
    return Thumbnail(max(box[2] for box in boxes) * 1.05 + 4, max(box[3] for box in boxes) * 1.05 + 4, "")


def thumbnail(file: Path) -> Thumbnail:
    """Return a small copy of an image, upright by its EXIF orientation, with the width and height of the original.

    Raises:
        InputError: it cannot be opened.
    """
    with ImageFile(file) as photo:
        small = photo.decode((2 * THUMBNAIL, 2 * THUMBNAIL)).copy()  # a JPEG decodes at a fraction of its size
        size = photo.size
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    jpeg = io.BytesIO()
    small.save(jpeg, "JPEG", quality=80, optimize=True)
    return Thumbnail(*size, "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode("ascii"))
