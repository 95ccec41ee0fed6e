"""Files of predictions, of any system: our own JSONL, results as COCO has them, and the words of language models."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from epmvg.core.types import Box, InputError
from epmvg.data.readers.coco import PHRASE_KEYS
from epmvg.data.readers.fields import four_numbers, require, short_repr, size_of
from epmvg.data.readers.files import read_json
from epmvg.data.readers.jsonl import json_objects
from epmvg.evaluation.external.coordinates import INPUT, Coordinates
from epmvg.evaluation.external.text import FARTHEST, LONGEST, read_boxes

Format = Literal["jsonl", "coco", "text"]
FORMATS: dict[Format, str | None] = {"jsonl": "pixels:xyxy", "coco": "pixels:xywh", "text": None}
"""What can be read, and the coordinates it has where none are named; text must name them."""

_ID_KEYS = ("id", "annotation_id", "ann_id")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a system said to one phrase."""

    where: str  # it stands in the file
    id: str  # of the row that it answers, "" where it names none
    image: str | None  # file name or path
    image_id: int | None
    phrase: str | None
    numbers: Box | None  # as they stand there; None where there is no box
    fault: str  # why there is none
    boxes: int  # found in the answer, of which one counts
    score: float | None
    seen: tuple[int, int] | None  # width and height of the picture that the system saw
    target: Box | None  # that our own predictions repeat


def read_answers(file: Path, form: Format, coordinates: Coordinates) -> list[Answer]:
    """Read the answers of a file; of several boxes in a text the first counts.

    Raises:
        InputError: the file or a row is not of the format, or no answer holds a box.
    """
    rows = _coco_rows(file) if form == "coco" else json_objects(file)
    answers = [_answer(row, where, _said(row, where, form, coordinates), coordinates) for where, row in rows]
    if not answers:
        raise InputError(f"{file} holds no predictions: give a file with a row for each phrase.")
    if not any(answer.boxes for answer in answers):
        raise InputError(
            f"{file}: not one of {len(answers):,} answers holds a box in a form that is known, the first"
            f" ({answers[0].where}): {answers[0].fault}; docs/score.md lists the forms."
        )
    return answers


def _coco_rows(file: Path) -> Iterator[tuple[str, Any]]:
    content = read_json(file)
    if not isinstance(content, list):
        raise InputError(f'{file} is not a list of results: give [{{"image_id", "bbox", "score", "phrase"}}, ...].')
    for number, row in enumerate(content):
        if not isinstance(row, dict):
            raise InputError(f"{file}, result {number} is not an object: mend or delete it.")
        yield f"{file}, result {number}", row


def _answer(row: dict[str, Any], where: str, said: tuple[list[Box], str], coordinates: Coordinates) -> Answer:
    boxes, fault = said
    named = next((row[key] for key in _ID_KEYS if row.get(key) not in (None, "")), None)
    if isinstance(named, bool) or not isinstance(named, str | int | None):
        raise InputError(f"{where}: {short_repr(named)} is not the id of a row; mend it.")
    image, number = row.get("image"), row.get("image_id")
    if image is None and isinstance(number, str):
        image = number
    phrase = next((row[key] for key in PHRASE_KEYS if isinstance(row.get(key), str)), None)
    if named is None and (phrase is None or (not isinstance(image, str) and type(number) is not int)):
        raise InputError(f'{where} does not say what it answers: give it "id", or "image" and "phrase".')
    seen = size_of(row.get("input_width"), row.get("input_height"), where)
    if coordinates.unit == INPUT and boxes and (seen is None or 0 in seen):
        raise InputError(f'{where} has no "input_width" and "input_height": {INPUT} require them in each row.')
    target = four_numbers(row.get("target"))
    return Answer(
        where=where,
        id=_id(named),
        image=image if isinstance(image, str) else None,
        image_id=number if type(number) is int else None,
        phrase=phrase,
        numbers=boxes[0] if boxes else None,
        fault="" if boxes else fault,
        boxes=len(boxes),
        score=_score(row.get("score")),
        seen=seen,
        target=target,
    )


def _id(named: str | int | None) -> str:
    if isinstance(named, int) and named.bit_length() > 99:
        return short_repr(named)
    return "" if named is None else str(named)


def _score(value: object) -> float | None:
    """Return a score that is a number, None for anything else: no figure rests on it."""
    found = four_numbers([value] * 4) if isinstance(value, int | float) else None
    return found[0] if found and math.isfinite(found[0]) else None


def _said(row: dict[str, Any], where: str, form: Format, coordinates: Coordinates) -> tuple[list[Box], str]:
    """Return the boxes of a row, or why it has none."""
    if form == "text":
        return _text(row, where, coordinates)
    if form == "jsonl" and row.get("box") is None and ("error" in row or "box" in row):
        return [], str(row.get("error") or "no box was given")
    return _four(row, "box" if form == "jsonl" else "bbox", where)


def _four(row: dict[str, Any], key: str, where: str) -> tuple[list[Box], str]:
    if key not in row:
        raise InputError(f'{where} has no "{key}": name what the file is with --format {", ".join(FORMATS)}.')
    found = four_numbers(row[key])
    if found is None:
        raise InputError(f'{where}: "{key}" is {short_repr(row[key])}, it must be four numbers.')
    if all(abs(value) <= FARTHEST for value in found):
        return [found], ""
    return [], f"{short_repr(row[key])} holds a value that is no coordinate"


def _text(row: dict[str, Any], where: str, coordinates: Coordinates) -> tuple[list[Box], str]:
    if "answer" not in row:
        raise InputError(f'{where} has no "answer": name the text of an answer so.')
    if row["answer"] is None:
        return [], "no answer was given"
    text = require(row, "answer", str, where)
    if len(text) > LONGEST:
        return [], f"the answer has {len(text):,} letters, more than {LONGEST:,}"
    return read_boxes(text, coordinates), f"no box in {short_repr(text)}"
