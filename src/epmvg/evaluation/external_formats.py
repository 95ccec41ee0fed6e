"""Files of external predictions: coordinate conventions, rows, COCO results and the text of vision-language models."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from epmvg.core.geometry import Clip
from epmvg.core.types import Box, InputError
from epmvg.data.readers.coco import PHRASE_KEYS
from epmvg.data.readers.fields import four_numbers, name_of, require, require_box, short_repr, size_of
from epmvg.data.readers.files import read_json
from epmvg.data.readers.jsonl import json_objects

Size = tuple[float, float]
INPUT_PIXELS = "input-pixels"


@dataclass(frozen=True, slots=True)
class Unit:
    """A number v on a side means the fraction (v + offset) / span of it; without a span it counts pixels."""

    span: float | None = None
    offset: float = 0.0
    square: bool = False  # of the side of the square that the image was padded to, evenly on both sides


UNITS = {
    "pixels": Unit(),  # of the original image, upright
    INPUT_PIXELS: Unit(),  # of the resized image, whose input_width and input_height each row states
    "0-1": Unit(1.0),
    "0-1-square": Unit(1.0, square=True),
    "0-100": Unit(100.0),
    "0-1000": Unit(1000.0),
    "0-999": Unit(999.0),
    "1000-bins": Unit(1000.0, offset=0.5),  # the middle of a bin
    "1024-bins": Unit(1024.0),  # the start of a bin
}
ORDERS = ("xyxy", "yxyx", "xywh", "cxcywh")


@dataclass(frozen=True, slots=True)
class Coordinates:
    """A coordinate convention: a unit and an order, written "0-1000:xyxy" (docs/evaluate.md)."""

    unit: str
    order: str

    @classmethod
    def named(cls, text: str) -> Coordinates:
        """Return the convention of a name.

        Raises:
            InputError: there is no such convention.
        """
        unit, _, order = text.partition(":")
        if unit not in UNITS or order not in ORDERS:
            raise InputError(
                f"--coordinates {text} is not known. Give a unit of {', '.join(UNITS)}, a colon and an order of"
                f" {', '.join(ORDERS)}, for example 0-1000:xyxy."
            )
        return cls(unit, order)

    def __str__(self) -> str:
        return f"{self.unit}:{self.order}"

    @property
    def span(self) -> float | None:
        """The number of the far edge of an image; None in pixels."""
        return UNITS[self.unit].span

    def corners(self, numbers: Box) -> Box:
        """Return four numbers of this order as x0, y0, x1, y1 in the same unit."""
        a, b, c, d = numbers
        if self.order == "yxyx":
            return b, a, d, c
        if self.order == "cxcywh":
            return a - c / 2, b - d / 2, a + c / 2, b + d / 2
        return (a, b, a + c, b + d) if self.order == "xywh" else numbers

    def to_pixels(self, corners: Box, size: Size | None, input_size: Size | None = None) -> Box:
        """Return x0, y0, x1, y1 in pixels of the original image.

        Args:
            corners: x0, y0, x1, y1 in this unit.
            size: width and height of the original image; not needed where the unit is its pixels.
            input_size: width and height of the resized image, where the unit is its pixels.
        """
        x0, y0, x1, y1 = corners
        if self.unit == "pixels":
            return corners
        assert size is not None
        unit = UNITS[self.unit]
        across, down = input_size if unit.span is None and input_size else (unit.span or 1.0, unit.span or 1.0)
        width, height = size
        left = top = 0.0
        if unit.square:
            side = max(width, height)
            left, top = (side - width) // 2, (side - height) // 2
            width = height = side
        return (
            (x0 + unit.offset) * width / across - left,  # multiplied first: whole results stay whole
            (y0 + unit.offset) * height / down - top,
            (x1 + unit.offset) * width / across - left,
            (y1 + unit.offset) * height / down - top,
        )


# Files

Format = Literal["jsonl", "coco", "text"]
FORMATS: dict[Format, str | None] = {"jsonl": "pixels:xyxy", "coco": "pixels:xywh", "text": None}
"""Formats with their default coordinates; text has none."""


@dataclass(frozen=True, slots=True)
class ExternalPrediction:
    """One line of a file of predictions."""

    location: str  # file and line
    id: str  # of the sample, "" without one
    image: str | None  # file name or path
    phrase: str | None
    corners: Box | None  # x0, y0, x1, y1 in the unit of the file; None without a box
    error: str  # why there is none
    score: float | None
    input_size: tuple[int, int] | None  # width and height of the resized image
    target: Box | None  # which our own rows repeat
    clip: Clip  # as they state it, else the image


def read_predictions(file: Path, form: Format, coordinates: Coordinates) -> list[ExternalPrediction]:
    """Read the predictions of a file.

    Raises:
        InputError: the file or a row is not of the format, or no prediction has a box.
    """
    rows = _coco_results(file) if form == "coco" else json_objects(file)
    predictions = [_prediction(row, location, form, coordinates) for location, row in rows]
    if not predictions:
        raise InputError(f"{file} holds no predictions. Give a file with one line per phrase.")
    if not any(prediction.corners for prediction in predictions):
        raise InputError(
            f"None of the {len(predictions):,} outputs in {file} holds a box ({predictions[0].location}: "
            f"{predictions[0].error}). Write one of the formats in docs/evaluate.md."
        )
    return predictions


def _coco_results(file: Path) -> Iterator[tuple[str, Any]]:
    content = read_json(file)
    if not isinstance(content, list):
        raise InputError(f'{file} is not a list of results. Give [{{"id", "bbox", "score"}}, ...].')
    for number, row in enumerate(content):
        if not isinstance(row, dict):
            raise InputError(f"{file}, result {number} is not an object. Correct or delete it.")
        yield f"{file}, result {number}", row


def _prediction(row: dict[str, Any], location: str, form: Format, coordinates: Coordinates) -> ExternalPrediction:
    corners, error = _text_box(row, location, coordinates) if form == "text" else _box(row, location, form, coordinates)
    sample_id, image, score = name_of(row, "id", location), row.get("image"), row.get("score")
    phrase = next((row[key] for key in PHRASE_KEYS if isinstance(row.get(key), str)), None)
    if not sample_id and (phrase is None or not isinstance(image, str)):
        raise InputError(f'{location} names no sample. Give it "id", or "image" and "phrase".')
    input_size = size_of(row.get("input_width"), row.get("input_height"), location)
    if coordinates.unit == INPUT_PIXELS and corners and (input_size is None or 0 in input_size):
        raise InputError(f'{location} has no "input_width" and "input_height". Add them, as {INPUT_PIXELS} needs them.')
    return ExternalPrediction(
        location=location,
        id=sample_id,
        image=image if isinstance(image, str) else None,
        phrase=phrase,
        corners=corners,
        error=error,
        score=score if isinstance(score, float) and math.isfinite(score) else None,
        input_size=input_size,
        target=four_numbers(row.get("target")),
        clip="canvas" if row.get("clip") == "canvas" else "image",
    )


def _text_box(row: dict[str, Any], location: str, coordinates: Coordinates) -> tuple[Box | None, str]:
    """Return the first box in the output of a model as corners, or why there is none."""
    if row.get("answer", "") is None:
        return None, "the answer is null"
    text = require(row, "answer", str, location)
    boxes = parse_boxes(text, coordinates)
    return (boxes[0], "") if boxes else (None, f"no box in {short_repr(text)}")


def _box(row: dict[str, Any], location: str, form: Format, coordinates: Coordinates) -> tuple[Box | None, str]:
    """Return the box of a row as corners, or why there is none."""
    key = "box" if form == "jsonl" else "bbox"
    if form == "jsonl" and row.get("box") is None and row.keys() & {"box", "error"}:
        return None, str(row.get("error") or "the box is null")
    if key not in row:
        raise InputError(f'{location} has no "{key}". Name the format of the file with --format {", ".join(FORMATS)}.')
    numbers = require_box(row, key, location)
    if not all(abs(value) <= MAX_COORDINATE for value in numbers):
        return None, f"{short_repr(row[key])} holds a value that is no coordinate"
    return coordinates.corners(numbers), ""


# Text

MAX_TEXT = 100_000  # characters; a longer output is not parsed
MAX_COORDINATE = 1e9  # products of two stay finite

_NUMBER = re.compile(
    r"(?<![A-Za-z0-9.])[-+]?(?:[0-9]{1,9}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][-+]?[0-9]{1,3})?(?![0-9])"
)
_SAME_LIST = re.compile(r"[\s,]{1,8}")
_NEXT_LIST = re.compile(r"\s{0,8};\s{0,8}|\s{0,8}[\])}>]{1,3}[\s,]{0,8}[\[({<]{1,3}\s{0,8}")
_BEFORE = re.compile(r"[\[({<>]\s{0,8}$")
_AFTER = re.compile(r"\s{0,8}[\])}><]")

_LOCATION = re.compile(r"<(?:loc_?|bin_)([0-9]{1,4})>")
_REASONING_START, _REASONING_END = re.compile(r"<think>", re.IGNORECASE), re.compile(r"</think>", re.IGNORECASE)
_ANSWER_START = re.compile(r"<answer>|<\|begin_of_box\|>", re.IGNORECASE)
_ANSWER_END = re.compile(r"</answer>|<\|end_of_box\|>", re.IGNORECASE)


def parse_boxes(text: str, convention: Coordinates) -> list[Box]:
    """Return the boxes in the output of a model as x0, y0, x1, y1 in the convention's unit; nothing is evaluated.

    Four numbers are a box in brackets ("[1, 2, 3, 4]", "(1,2),(3,4)"), between tags ("<box>1 2 3 4</box>",
    "<12><34><56><78>"), as location tokens ("<loc_12>...", "<bin_12>..."), or if there is nothing else. Reasoning
    ("<think>...</think>") is ignored, and so is all outside of the last "<answer>...</answer>". The time is
    proportional to the length of the text.
    """
    if len(text) > MAX_TEXT:
        return []
    output = _REASONING_START.split(_REASONING_END.split(text)[-1])[0]
    output = _ANSWER_END.split(_ANSWER_START.split(output)[-1])[0].strip()
    output = _LOCATION.sub(r"<\1>", output)
    boxes: list[Box] = []
    for start, end, lists in _number_lists(output):
        enclosed = _BEFORE.search(output[max(0, start - 9) : start]) and _AFTER.match(output, end)
        if not enclosed and (start, end) != (0, len(output)):
            continue
        flat = [number for numbers in lists for number in numbers]
        lengths = {len(numbers) for numbers in lists}
        if lengths == {4} or (lengths == {2} and len(flat) == 4) or (lengths == {1} and len(flat) % 4 == 0):
            boxes += [convention.corners((a, b, c, d)) for a, b, c, d in zip(*[iter(flat)] * 4, strict=True)]
    return [box for box in boxes if max(map(abs, box)) <= MAX_COORDINATE]


def _number_lists(text: str) -> Iterator[tuple[int, int, list[list[float]]]]:
    """Yield start, end and numbers of adjacent lists: "(1,2),(3,4)" is [[1, 2], [3, 4]]."""
    lists: list[list[float]] = []
    start = end = 0
    for match in _NUMBER.finditer(text):
        number = float(match.group())
        if lists and _SAME_LIST.fullmatch(text, end, match.start()):
            lists[-1].append(number)
        elif lists and _NEXT_LIST.fullmatch(text, end, match.start()):
            lists.append([number])
        else:
            if lists:
                yield start, end, lists
            start, lists = match.start(), [[number]]
        end = match.end()
    if lists:
        yield start, end, lists
