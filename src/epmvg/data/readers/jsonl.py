"""JSONL, one annotation per line: `{"image", "phrase", "bbox": [x, y, w, h]}`, perhaps with `split`, `id`, `width`,
`height`, `weight` and keys of its own; image paths are relative to the file, or to a root.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from epmvg.core.files import to_json
from epmvg.core.types import InputError
from epmvg.data.readers.annotations import Located
from epmvg.data.readers.fields import Annotation
from epmvg.data.readers.files import byte_lines, parse_json


def jsonl_annotations(file: Path) -> Located[Annotation]:
    """Yield (location, object or what is wrong with it) of each line of a JSONL file."""
    for location, line in byte_lines(file):
        try:
            yield location, json_object(line, location)
        except InputError as error:
            yield location, error


def json_objects(file: Path) -> Iterator[tuple[str, Annotation]]:
    """Yield (location, object) of each line of a JSONL file."""
    for location, line in byte_lines(file):
        yield location, json_object(line, location)


def json_object(line: bytes, location: str) -> Annotation:
    """Parse one line of JSONL."""
    value = parse_json(line, location)
    if not isinstance(value, dict):
        raise InputError(f"{location} is not a JSON object. Fix or delete the line.")
    return value


def json_line(annotation: Annotation) -> bytes:
    """Return one line of JSONL."""
    return to_json(annotation).encode() + b"\n"
