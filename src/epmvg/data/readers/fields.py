"""Fields of annotations: parsing and checking the values that a file states.

A value that cannot be used raises an InputError that names its location: the file, and the line or number in it.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from epmvg.core.types import Box, InputError

Annotation = dict[str, Any]
"""What a file states of one phrase: image, phrase, bbox [x, y, w, h], perhaps width, height, split, id, and others."""

T = TypeVar("T")

_NOUNS: dict[type, str] = {str: "a text", int: "a whole number", bytes: "bytes", list: "a list", dict: "an object"}


def require(annotation: object, key: str, kind: type[T], location: str) -> T:
    """Return the value of a key that must be there and of a type."""
    value = annotation.get(key) if isinstance(annotation, dict) else None
    if not isinstance(value, kind):
        raise InputError(f'{location}: "{key}" is {short_repr(value)}, it must be {_NOUNS[kind]}. Fix the annotation.')
    return value


def require_box(annotation: Annotation, key: str, location: str) -> Box:
    """Return the four numbers of a key, which mean what the format says."""
    numbers = four_numbers(annotation.get(key))
    if numbers is None:
        value = short_repr(annotation.get(key))
        raise InputError(f'{location}: "{key}" is {value}, it must be four numbers. Fix or delete the annotation.')
    return numbers


def name_of(annotation: Annotation, key: str, location: str) -> str:
    """Return the text or number of a key as text, "" where it is missing or null."""
    value = annotation.get(key)
    if value is None:
        return ""
    if not isinstance(value, str | int | float) or (isinstance(value, int) and value.bit_length() > 99):
        raise InputError(
            f'{location}: "{key}" is {short_repr(value)}, it must be a text or a number. Fix the annotation.'
        )
    return str(value)


def four_numbers(value: object) -> Box | None:
    """Return a list of four numbers, also as text, as floats, or None where it is anything else."""
    if not isinstance(value, list | tuple) or len(value) != 4 or (numbers := _floats(value)) is None:
        return None
    a, b, c, d = numbers
    return a, b, c, d


def _floats(values: Sequence[Any]) -> list[float] | None:
    """Return numbers, also as text, as floats, or None where one is anything else."""
    try:
        return None if any(isinstance(value, bool) for value in values) else [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        return None


def weight_of(annotation: Annotation, location: str) -> float:
    """Return the weight of an annotation in training, 1 where it states none."""
    value = annotation.get("weight")
    weight = [1.0] if value is None else _floats((value,))
    if weight is None or not 1e-6 <= weight[0] <= 1e6:
        raise InputError(
            f'{location}: "weight" is {short_repr(value)}, it must be a number from 0.000001 to 1000000. '
            "Fix or delete it."
        )
    return weight[0]


def size_of(width: object, height: object, location: str) -> tuple[int, int] | None:
    """Return (width, height) in pixels, also of numbers in text, or None where either is not stated."""
    if width is None or height is None:
        return None
    sides = _floats((width, height))
    if sides is None or not all(0 <= side < 1e9 for side in sides):
        stated = f"{short_repr(width)}, {short_repr(height)}"
        raise InputError(f"{location}: width and height are {stated}, not pixels. Fix the annotation.")
    return int(sides[0]), int(sides[1])


def index_by_id(entries: list[Any], key: str, location: str) -> dict[str, Annotation]:
    """Return the entries of a list by their ids, as text; two of one id must have the same value of `key`."""
    found: dict[str, Annotation] = {}
    for entry in entries:
        entry_id = entry.get("id") if isinstance(entry, dict) else None
        if isinstance(entry_id, bool) or not isinstance(entry_id, int | str):
            continue
        before = found.setdefault(str(entry_id), entry)
        if before.get(key) != entry.get(key):
            pair = f"{short_repr(before.get(key))} and for {short_repr(entry.get(key))}"
            raise InputError(f"{location}: id {short_repr(entry_id)} stands for {pair}. Give each an id of its own.")
    return found


def picked(annotation: Annotation, *keys: str) -> Annotation:
    """Return the keys of an annotation that are there, with their values."""
    return {key: annotation[key] for key in keys if key in annotation}


def merged(stated: Annotation, own: Annotation) -> Annotation:
    """Return what a format states and the annotation's own keys; a key of both is "attributes.KEY" of the own."""
    return {f"attributes.{key}" if key in stated else key: value for key, value in own.items()} | stated


def union_box(boxes: Sequence[Box]) -> Box:
    """Return the box (x0, y0, x1, y1) around several."""
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return min(x0), min(y0), max(x1), max(y1)


def to_xywh(box: Iterable[float]) -> list[float]:
    """Return a box (x0, y0, x1, y1) as [x, y, w, h], from which adding gives the same corners."""
    x0, y0, x1, y1 = box
    return [x0, y0, length(x0, x1), length(y0, y1)]


def length(start: float, end: float) -> float:
    """Return the shortest decimal that leads from start to end: 108.71 rather than 108.70999999999998."""
    exact = end - start
    nearby = (math.nextafter(exact, math.inf), math.nextafter(exact, -math.inf))
    candidates = (*(round(exact, digits) for digits in (2, 6, 12)), exact, *nearby)
    return next((value for value in candidates if start + value == end), exact)


def short_repr(value: object) -> str:
    """Return a short form of any value for a message."""
    try:
        return reprlib.repr(value)
    except ValueError:  # an integer of more than 4,300 digits
        return f"a huge {type(value).__name__}"
