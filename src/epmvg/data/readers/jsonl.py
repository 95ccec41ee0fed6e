"""Rows and records: what every format is read into and written from, and JSONL, which holds just that.

A row is `{"image", "phrase", "bbox": [x, y, w, h]}` with optional `split`, `id`, `width`, `height` and keys of its own;
image paths are relative to the file, or to a root that holds the pictures.
"""

from __future__ import annotations

import codecs
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from epmvg.core.files import atomic_write
from epmvg.core.types import Box, InputError, Sample
from epmvg.data.garbage import collector_paused
from epmvg.data.readers.files import (
    four_numbers,
    is_encodable,
    need,
    parse_json,
    refuse_pointer,
    relative_to,
    shown,
    size_of,
)
from epmvg.data.readers.finder import ImageFinder

Row = dict[str, Any]
T = TypeVar("T")

MALFORMED = "the row is malformed"
"""The reason under which `Skipped` counts rows that are not built as their format wants."""

VALIDATION = ("val", "valid", "validation", "dev")
"""What people call the split that training validates on."""

LONGEST_PHRASE = 100
"""Words; a longer "phrase" is a document pasted into the wrong column (the field's sets stay under 60)."""


class LeftOutError(InputError):
    """A well-formed row that is left out for a reason of its own, under which `Skipped` counts it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(slots=True)
class Skipped:
    """Rows that could not be used, by reason, with the first of each kind named.

    `every` collects (where it stands, reason) of each of them if it is a list.
    """

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    every: list[tuple[str, str]] | None = None

    def add(self, reason: str, row: str) -> None:
        self.counts[reason] += 1
        self.first.setdefault(reason, row)
        if self.every is not None:
            self.every.append((row, reason))

    def __str__(self) -> str:
        return "; ".join(
            f"{count} row{'s' * (count > 1)} skipped: {reason} (first: {self.first[reason]})"
            for reason, count in self.counts.items()
        )


def read_jsonl(
    file: Path | str,
    *,
    split: str | None = None,
    split_key: str = "split",
    root: Path | str | None = None,
    skipped: Skipped | None = None,
) -> list[Sample]:
    """Read the records of a JSONL file.

    Args:
        file: the JSONL file.
        split: keep only rows whose `split_key` says so; None keeps all.
        root: what image paths are relative to and stay in; by default the file's folder.
        skipped: malformed rows, and rows with a box outside the image or empty, or an unusable phrase, are counted
            and left out here; without it they raise.

    Raises:
        InputError: the file is missing, a line is not such a row, or nothing is left.
    """
    file = Path(file)
    folder = Path(root) if root else file.parent
    return read_rows(line_rows(file), folder, str(file), split=split, split_key=split_key, skipped=skipped)


def read_rows(
    rows: Iterable[tuple[str, Row | InputError]],
    root: Path,
    source: str,
    *,
    split: str | None = None,
    split_key: str = "split",
    skipped: Skipped | None = None,
) -> list[Sample]:
    """Turn (where it stands, row or what is wrong with it) into records; arguments and errors as `read_jsonl`."""
    splits: set[str] = set()
    records = usable(named_records(rows, root, split_key, split=split, splits=splits), skipped)
    refuse_empty(records, f"{source} has no usable rows{_missing(split, splits)}.", skipped)
    return records


def refuse_empty(records: Sequence[Sample], sentence: str, skipped: Skipped | None) -> None:
    """Raise InputError where no record is left, with a sentence and what was skipped."""
    if not records:
        raise InputError(f"{sentence} {skipped}." if skipped and skipped.counts else sentence)


def named_records(
    rows: Iterable[tuple[str, Row | InputError]],
    root: Path,
    split_key: str,
    *,
    split: str | None = None,
    splits: set[str] | None = None,
) -> Iterator[tuple[str, Sample | InputError]]:
    """Yield (where it stands, record or what is wrong with its row), of one split or all; names go to `splits`."""
    find = ImageFinder(root)
    for where, row in rows:
        if isinstance(row, InputError):
            yield where, row
            continue
        try:
            named = _text(row.get(split_key), where)
            if splits is not None and len(splits) < 20:
                splits.add(named)
            if split is None or named == split:
                yield where, _record(row, find, where, split_key)
        except InputError as error:
            yield where, error


def _missing(split: str | None, there: set[str]) -> str:
    """Say which split is missing, and which one is probably meant."""
    if split is None or not there:
        return ""
    named = sorted(there - {""})
    if not named:
        return f" of split {split!r} (no row names a split: `epmvg data split` deals them out)"
    alike = [name for name in named if name.lower() in VALIDATION] if split == "val" else []
    alike = alike or [name for name in named if name.lower() in (f"{split}ing", split.lower())]
    hint = (
        f"; {alike[0]!r} is probably meant, name it with data.{split}={alike[0]} or --split {alike[0]}" if alike else ""
    )
    return f" of split {split!r} (there are {', '.join(named)}{hint})"


def each(where: str, made: Iterable[T]) -> Iterator[tuple[str, T | InputError]]:
    """Yield what one part of a file makes, each with where it stands, or the InputError that making it raises."""
    try:
        whole = list(made)
    except InputError as error:
        yield where, error
        return
    yield from ((where, one) for one in whole)


def merged(stated: Row, own: Mapping[str, Any]) -> Row:
    """Return what a format states of a row and the row's own keys; a key of both is "attributes.KEY" of the own."""
    return {f"attributes.{key}" if key in stated else key: value for key, value in own.items()} | stated


def usable(named: Iterable[tuple[str, Sample | InputError]], skipped: Skipped | None) -> list[Sample]:
    """Keep what can be used of (where it stands, record or what is wrong with its row).

    Raises:
        InputError: a record cannot be used, and there is no `skipped` to count it.
    """
    records = []
    with collector_paused():
        for where, record in named:
            if isinstance(record, InputError):
                if skipped is None:
                    raise record
                skipped.add(record.reason if isinstance(record, LeftOutError) else MALFORMED, str(record))
                continue
            fault = fault_of(record)
            if fault is None:
                records.append(record)
            elif skipped is None:
                raise InputError(f"{where}: {fault}. Mend or delete the row.")
            else:
                skipped.add(fault, where)
    return records


def fault_of(record: Sample) -> str | None:
    """Say what makes a record unusable, or None."""
    x0, y0, x1, y1 = record.box
    if not all(math.isfinite(value) for value in record.box):
        return "the box holds a value that is not a number"
    if x1 - x0 <= 0 or y1 - y0 <= 0:
        return "the box is empty or inverted"
    if record.size is not None:
        width, height = record.size
        if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
            return "the box lies outside its image"
    return phrase_fault(record.phrase)


def phrase_fault(phrase: str) -> str | None:
    """Say what makes a phrase unusable, or None."""
    if not phrase.strip():
        return "the phrase is empty"
    if not is_encodable(phrase):
        return "the phrase holds half of a letter"
    if len(phrase.split()) > LONGEST_PHRASE:
        return f"the phrase has {len(phrase.split())} words, more than {LONGEST_PHRASE}"
    return None


def write_jsonl(file: Path | str, records: Sequence[Sample], *, root: Path | str | None = None) -> None:
    """Write records so that `read_jsonl` gives them back; image paths are relative to the root or the file's folder."""
    file = Path(file)
    with atomic_write(file) as temporary, temporary.open("wb") as out:
        out.writelines(json_line(row) for row in rows_of(records, Path(root) if root else file.parent))


def rows_of(records: Iterable[Sample], base: Path) -> Iterator[Row]:
    """Turn records into rows whose image paths are relative to `base`, absolute where they lie elsewhere."""
    names: dict[Path, str] = {}
    for record in records:
        x0, y0, x1, y1 = record.box
        name = names.get(record.image)
        if name is None:
            name = names[record.image] = relative_to(record.image, base) or record.image.absolute().as_posix()
        row: Row = {"image": name, "phrase": record.phrase, "bbox": [x0, y0, length(x0, x1), length(y0, y1)]}
        if record.size is not None:
            row["width"], row["height"] = record.size
        if record.split:
            row["split"] = record.split  # unless the row has one of its own, below
        if record.id:
            row["id"] = record.id
        yield row | record.extra


def length(start: float, end: float) -> float:
    """Return the shortest decimal that leads from start to end: 108.71 rather than 108.70999999999998."""
    exact = end - start
    for digits in (2, 6, 12):
        if start + round(exact, digits) == end:
            return round(exact, digits)
    nearby = (exact, math.nextafter(exact, math.inf), math.nextafter(exact, -math.inf))
    return next((value for value in nearby if start + value == end), exact)


def json_line(row: Row) -> bytes:
    """Return one line of JSONL, letters as they are where UTF-8 can hold them."""
    text = json.dumps(row, ensure_ascii=False)
    return (text if is_encodable(text) else json.dumps(row)).encode() + b"\n"


def json_lines(file: Path) -> Iterator[tuple[str, Row]]:
    """Yield (where it stands, object) of each line of a JSONL file.

    Raises:
        InputError: the file cannot be opened, is a Git LFS pointer, or a line is not a JSON object.
    """
    for where, line in text_lines(file):
        yield where, json_object(line, where)


def line_rows(file: Path) -> Iterator[tuple[str, Row | InputError]]:
    """Yield (where it stands, object or what is wrong with it) of each line of a JSONL file.

    Raises:
        InputError: the file cannot be opened, or is a Git LFS pointer.
    """
    for where, line in text_lines(file):
        try:
            yield where, json_object(line, where)
        except InputError as error:
            yield where, error


def text_lines(file: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (where it stands, content) of each line of a file that is not blank.

    Raises:
        InputError: the file cannot be opened, or is a Git LFS pointer.
    """
    try:
        lines = file.open("rb")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{file} cannot be opened ({reason}): check the path.") from error
    with lines:
        for number, line in enumerate(lines, 1):
            if number == 1:
                refuse_pointer(line, file)
                if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise InputError(f"{file} is UTF-16 text: save the file as UTF-8.")
            if line.strip():
                yield f"{file} line {number}", line.strip()


def json_object(line: bytes, where: str) -> Row:
    """Parse one line of JSONL.

    Raises:
        InputError: it is not a JSON object.
    """
    row = parse_json(line, where, "mend or delete the line")
    if not isinstance(row, dict):
        raise InputError(f"{where} is not a JSON object: mend or delete the line.")
    return row


def _record(row: Row, find: ImageFinder, where: str, split_key: str) -> Sample:
    for key in ("image", "phrase", "bbox"):
        if key not in row:
            raise InputError(f'{where} has no "{key}": a row needs image, phrase and bbox.')
    numbers = four_numbers(row["bbox"])
    if numbers is None:
        raise InputError(f'{where}: "bbox" is {shown(row["bbox"])}, it must be four numbers [x, y, w, h].')
    x, y, w, h = numbers
    box: Box = (x, y, x + w, y + h)
    known = {"image", "phrase", "bbox", "width", "height", "id"}
    if split_key == "split":  # else both it and the row's own "split" are kept as they were
        known.add("split")
    return Sample(
        image=find(row["image"], where),
        phrase=need(row, "phrase", str, where),
        box=box,
        split=_text(row.get(split_key, ""), where),
        id=_text(row.get("id", row.get("source_id", "")), where),
        size=size_of(row.get("width"), row.get("height"), where),
        extra={key: value for key, value in row.items() if key not in known},
    )


def _text(value: object, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str | int | float) or (isinstance(value, int) and value.bit_length() > 99):
        raise InputError(f"{where}: {shown(value)} is not the name of a row or split; mend the row.")
    return str(value)
