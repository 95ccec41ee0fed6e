"""Rows as they stand: a JSONL file is read line by line, faults and all; other formats come as records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epmvg.core.types import Box, InputError, Sample
from epmvg.data.readers.fields import four_numbers, short_repr, size_of
from epmvg.data.readers.files import json_error, open_file
from epmvg.data.validation.findings import Example, Findings, legible

LONGEST_LINE = 10_000_000
"""Bytes; a longer line is no row, and is not taken into memory whole."""

_OTHER_NAMES = {
    "image": ("img", "image_path", "file_name", "filename", "path"),
    "phrase": ("sentence", "sent", "caption", "expression", "text", "query"),
    "bbox": ("box", "bounding_box", "xywh", "xyxy"),
}
"""Keys that a row needs, and what other formats call them; letter case does not matter."""

_KEY_OF = {other: key for key, others in _OTHER_NAMES.items() for other in (*others, key)}


@dataclass(slots=True)
class Entry:
    """What could be understood of a row; None where it could not."""

    where: str
    image: str | None = None
    phrase: str | None = None
    box: Box | None = None  # x0, y0, x1, y1
    split: str | None = ""  # "" where it is not named, None where its value is no name
    id: str = ""  # or the annotation's, after "ann_id "
    size: tuple[int, int] | None = None
    file: Path | None = None  # where a reader has found the image already
    turned: str = ""  # what the reader did with a rotation that the annotation states


def count_lines(file: Path) -> int:
    """Count the lines of a file.

    Raises:
        InputError: the file cannot be opened.
    """
    with open_file(file) as source:
        return sum(part.count(b"\n") for part in iter(lambda: source.read(2**20), b"")) + 1


def read_entries(file: Path, split_key: str, found: Findings) -> Iterator[Entry]:
    """Yield what can be understood of each line of a JSONL file, and note what cannot.

    Raises:
        InputError: the file cannot be opened.
    """
    with open_file(file) as lines:
        for number, line in enumerate(iter(lambda: lines.readline(LONGEST_LINE), b""), 1):
            where = f"line {number}"
            if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                found.add("line-json", Example(where, f"longer than {LONGEST_LINE:,} bytes"))
                while line and not line.endswith(b"\n"):
                    line = lines.readline(LONGEST_LINE)  # noqa: PLW2901  the rest of the same line
                continue
            text = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
            if not text:
                continue
            row = _parse(text, where, found)
            if row is not None:
                yield _entry(row, where, split_key, found)


def entries_of(records: Iterable[Sample]) -> Iterator[Entry]:
    """Yield records as entries."""
    for number, record in enumerate(records, 1):
        ann_id = record.extra.get("ann_id")
        name = record.id or ("" if ann_id is None else f"ann_id {short_repr(ann_id)}")
        where = record_name(number, record)
        entry = Entry(where, str(record.image), record.phrase, record.box, record.split, name, record.size)
        entry.file, entry.turned = record.image, _turned(record)
        yield entry


def record_name(number: int, record: Sample) -> str:
    """Return what record `number`, from 1, is called in findings."""
    return f"row {number}" + (f" ({legible(record.id, 60)})" if record.id else "")


def _turned(record: Sample) -> str:
    """Say what became of a rotation that an annotation states."""
    for key in ("rotated", "rotation", "angle", "theta"):
        value = record.extra.get(key)
        if isinstance(value, int | float) and value:
            done = "read as the upright box around it" if key == "rotated" else "not applied"
            return f"{'rotation' if key == 'rotated' else key} {short_repr(value)}, {done}"
    return ""


def _parse(line: bytes, where: str, found: Findings) -> dict[str, Any] | None:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        found.add("line-encoding", Example(where, f"byte {error.start}: {error.reason}"))
        return None
    try:
        row = json.loads(text)
    except (RecursionError, ValueError) as error:
        found.add("line-json", Example(where, legible(json_error(error))))
        return None
    if not isinstance(row, dict):
        found.add("line-json", Example(where, f"{legible(short_repr(row))} is no object"))
        return None
    return row


def _entry(row: dict[str, Any], where: str, split_key: str, found: Findings) -> Entry:
    entry = Entry(where)
    if not row.keys() >= _OTHER_NAMES.keys():
        _name_keys(row, where, found)
    faults: list[str] = []
    entry.image = _text(row, "image", faults)
    entry.phrase = _text(row, "phrase", faults)
    entry.split = _label(row, split_key, faults)
    entry.id = _label(row, "id" if "id" in row else "source_id", faults) or ""
    if "bbox" in row:
        entry.box = _box(row["bbox"])
        if entry.box is None:
            faults.append(f'"bbox" is {short_repr(row["bbox"])}')
    try:
        entry.size = size_of(row.get("width"), row.get("height"), where)
    except InputError:
        faults.append(f"width and height are {short_repr(row['width'])}, {short_repr(row['height'])}")
    if faults:
        found.add("value-type", Example(where, legible("; ".join(faults)), entry.image or "", entry.phrase or ""))
    return entry


def _name_keys(row: dict[str, Any], where: str, found: Findings) -> None:
    """Note keys that are missing, or there under another name."""
    others = {_KEY_OF[key.lower()]: key for key in row if key.lower() in _KEY_OF and key not in _OTHER_NAMES}
    missing = [key for key in _OTHER_NAMES if key not in row]
    renamed = [f"{legible(others[key], 40)} -> {key}" for key in missing if key in others]
    absent = [key for key in missing if key not in others]
    name = row.get("image")
    image = legible(name) if isinstance(name, str) else ""
    if renamed:
        found.add("key-renamed", Example(where, ", ".join(renamed), image))
    if absent:
        found.add("key-missing", Example(where, f"no {', no '.join(absent)}", image))


def _text(row: dict[str, Any], key: str, faults: list[str]) -> str | None:
    value = row.get(key)
    if value is None and key not in row:
        return None
    if not isinstance(value, str):
        faults.append(f'"{key}" is {short_repr(value)}')
        return None
    return value


def _label(row: dict[str, Any], key: str, faults: list[str]) -> str | None:
    value = row.get(key)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        faults.append(f'"{key}" is {short_repr(value)}')
        return None
    return value if isinstance(value, str) else short_repr(value)


def _box(value: object) -> Box | None:
    numbers = four_numbers(value)
    if numbers is None:
        return None
    x, y, w, h = numbers
    return x, y, x + w, y + h
