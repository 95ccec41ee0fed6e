"""JSONL data sets: one row a phrase, `{"image", "phrase", "bbox": [x, y, w, h]}`, paths relative to the file."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from epmvg.types import Box, InputError, Record

LONGEST_PHRASE = 100
"""Words; a longer "phrase" is a document pasted into the wrong column (the field's sets stay under 60)."""


@dataclass(slots=True)
class Skipped:
    """Rows that could not be used, by reason, with the first of each kind named."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, row: str) -> None:
        self.counts[reason] += 1
        self.first.setdefault(reason, row)

    def __str__(self) -> str:
        return "; ".join(
            f"{count} row{'s' * (count > 1)} skipped: {reason} (first: {self.first[reason]})"
            for reason, count in self.counts.items()
        )


def read_jsonl(
    file: Path | str, *, split: str | None = None, split_key: str = "split", skipped: Skipped | None = None
) -> list[Record]:
    """Read the records of a JSONL file.

    Args:
        file: the JSONL file; image paths are relative to its folder.
        split: keep only rows whose `split_key` says so; None keeps all.
        skipped: rows with a box outside the image or empty, or an unusable phrase, are counted and left out here;
            without it they raise.

    Raises:
        InputError: the file is missing, a line is not such a row, or nothing is left.
    """
    file = Path(file)
    records = []
    splits: set[str] = set()
    for number, row in _rows(file):
        name = f"{file} line {number}"
        splits.add(str(row.get(split_key, "")))
        if split is not None and row.get(split_key) != split:
            continue
        record = _record(row, file.parent, name, split_key)
        fault = fault_of(record)
        if fault is None:
            records.append(record)
        elif skipped is None:
            raise InputError(f"{name}: {fault}. Mend or delete the row.")
        else:
            skipped.add(fault, name)
    if not records:
        wanted = f" of split {split!r} (there are {', '.join(sorted(splits))})" if split and splits else ""
        lost = f" {skipped}." if skipped and skipped.counts else ""
        raise InputError(f"{file} has no usable rows{wanted}.{lost}")
    return records


def fault_of(record: Record) -> str | None:
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
    if len(phrase.split()) > LONGEST_PHRASE:
        return f"the phrase has {len(phrase.split())} words, more than {LONGEST_PHRASE}"
    return None


def write_jsonl(file: Path | str, records: Sequence[Record]) -> None:
    """Write records so that `read_jsonl` gives them back; image paths become relative to the file where possible."""
    file = Path(file)
    temporary = file.with_name(file.name + ".part")
    with temporary.open("w", encoding="utf-8") as out:
        for record in records:
            x0, y0, x1, y1 = record.box
            image = record.image
            if image.is_relative_to(file.parent):
                image = image.relative_to(file.parent)
            row: dict[str, Any] = {
                "image": image.as_posix(),
                "phrase": record.phrase,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
            }
            if record.size is not None:
                row["width"], row["height"] = record.size
            if record.split:
                row["split"] = record.split  # unless the row has one of its own, below
            if record.id:
                row["id"] = record.id
            out.write(json.dumps(row | record.extra, ensure_ascii=False) + "\n")
    temporary.replace(file)


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        lines = file.open(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file} cannot be opened ({error.strerror}): check the path.") from error
    with lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{file} line {number} is not JSON ({error.msg}): mend or delete the line.") from error
            if not isinstance(row, dict):
                raise InputError(f"{file} line {number} is not a JSON object: mend or delete the line.")
            yield number, row


def _record(row: dict[str, Any], root: Path, name: str, split_key: str) -> Record:
    try:
        image, phrase, (x, y, w, h) = row["image"], row["phrase"], map(float, row["bbox"])
    except KeyError as error:
        raise InputError(f'{name} has no "{error.args[0]}": a row needs image, phrase and bbox.') from error
    except (TypeError, ValueError) as error:
        raise InputError(f'{name}: "bbox" is {row["bbox"]!r}, it must be four numbers [x, y, w, h].') from error
    if not isinstance(image, str) or not isinstance(phrase, str):
        raise InputError(f'{name}: "image" and "phrase" must be texts.')
    box: Box = (x, y, x + w, y + h)
    size = (int(row["width"]), int(row["height"])) if "width" in row and "height" in row else None
    known = {"image", "phrase", "bbox", "width", "height", "id"}
    if split_key == "split":  # else both it and the row's own "split" are kept as they were
        known.add("split")
    return Record(
        image=root / image,
        phrase=phrase,
        box=box,
        split=str(row.get(split_key, "")),
        id=str(row.get("id", row.get("source_id", ""))),
        size=size,
        extra={key: value for key, value in row.items() if key not in known},
    )
