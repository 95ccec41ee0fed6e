"""The doctor: finds what is missing, broken, duplicated or leaked in a data set, and says it plainly."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epmvg.data.catalog import DATASETS, open_records
from epmvg.data.coco import is_odvg_file
from epmvg.data.jsonl import Skipped
from epmvg.doctor.checks import Examination, judge_counts, judge_missing_splits
from epmvg.doctor.findings import Example, Finding, Findings, legible
from epmvg.doctor.images import Images, judge_images
from epmvg.doctor.leaks import judge_list, judge_splits
from epmvg.doctor.page import write_page
from epmvg.doctor.rows import Entry, count_lines, entries_of, read_entries
from epmvg.doctor.sources import NEARLY, SOURCES
from epmvg.types import InputError, Progress, Record

__all__ = ["Diagnosis", "check", "write_page"]

LONGEST = 20
"""Word pieces that TransVG and its kin read, [CLS] and [SEP] included; longer phrases lose their end."""

_JSONL_SETS = {"scenes": "split", "flickr-mini": "mini_split"}
"""Named sets that are a JSONL file, and the key that names their split."""


@dataclass(slots=True)
class Diagnosis:
    """What was looked at and what was found."""

    data: str
    rows: int
    images: int
    splits: dict[str, dict[str, int]]  # name -> images, phrases
    findings: list[Finding]
    seconds: float
    note: str = ""

    @property
    def clean(self) -> bool:
        return not self.findings

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        head = {"data": self.data, "clean": self.clean, "rows": self.rows, "images": self.images}
        tail = {"note": self.note, "seconds": round(self.seconds, 1)}
        return head | {"splits": self.splits, "findings": [one.as_dict() for one in self.findings]} | tail

    def table(self) -> list[dict[str, str]]:
        """Return a row for each finding, for a terminal."""
        return [
            {
                "finding": one.name,
                "count": f"{one.count:,} {one.unit}",
                "what it means and what helps": f"{one.kind.weight}: {one.kind.title}. {one.kind.cure}",
                "first": ": ".join(part for part in (one.examples[0].where, one.examples[0].note) if part),
            }
            for one in self.findings
        ]


def check(
    data: str,
    *,
    root: Path | str | None = None,
    split_key: str | None = None,
    against: Path | str | None = None,
    longest: int = LONGEST,
    progress: Progress | None = None,
) -> Diagnosis:
    """Look at every row and photo of a data set and say what is wrong.

    JSONL is read as it stands, row by row; other formats through their readers.

    Args:
        data: a name of `epmvg list datasets`, or a file or folder.
        root: the folder the set lies in; for a file, what its image paths are relative to, by default its folder.
        split_key: the row key that names the split, by default the set's own, or "split".
        against: a text file of image names or ids, one a line, that evaluation must not hold.
        longest: word pieces a model reads, [CLS] and [SEP] included.
        progress: called with (rows looked at, lines of the file or records).

    Raises:
        InputError: the data or the list cannot be read at all.
    """
    start = time.perf_counter()
    found = Findings()
    file = _jsonl_file(data, root)
    base = Path(root) if root is not None and data not in DATASETS else file.parent if file else Path()
    entries: Iterable[Entry]
    if file is not None:
        total = count_lines(file)
        entries = read_entries(file, split_key or _JSONL_SETS.get(data, "split"), found)
    else:
        records = _from_reader(data, root, split_key or "split", found)
        total, entries = len(records), entries_of(records)
    with Images(base) as images:
        seen = Examination(images, found, longest)
        seen.read(entries, total, progress)
        splits = seen.names()
        if split_key and seen.rows and not any(splits):
            raise InputError(f"No row of {data} has the key {split_key!r}: give the one that names the split.")
        judge_images(images, splits, found)
        seen.close()
        judge_splits(images, splits, found)
        if against is not None:
            judge_list(images, splits, Path(against), found)
        counts = {split: sum(one.splits >> number & 1 for one in images) for split, number in seen.splits.items()}
        number_of_images = sum(1 for _ in images)
    note = _judge_name(data, seen.rows, counts, found)
    table = {split: {"images": counts[split], "phrases": seen.rows[split]} for split in splits}
    return Diagnosis(
        data, seen.rows.total(), number_of_images, table, found.listed(), time.perf_counter() - start, note
    )


def _jsonl_file(data: str, root: Path | str | None) -> Path | None:
    """Return the JSONL file that holds a data set, if one does."""
    if data in _JSONL_SETS:
        folder = Path(root) if root is not None else DATASETS[data].default_root()
        if folder is None or not (folder / "annotations.jsonl").is_file():
            open_records(data, split=None, root=root)  # draws the scenes, or says what is missing
        return (folder or Path()) / "annotations.jsonl"
    if data in DATASETS:
        return None
    file = Path(data)
    if file.is_dir() and (file / "annotations.jsonl").is_file() and not (file / "metadata.jsonl").is_file():
        return file / "annotations.jsonl"
    if file.suffix == ".jsonl" and not (file.is_file() and is_odvg_file(file)):
        return file
    return None


def _from_reader(data: str, root: Path | str | None, split_key: str, found: Findings) -> list[Record]:
    """Read records, and note what the reader left out."""
    skipped = Skipped()
    try:
        records = open_records(data, split=None, root=root, split_key=split_key, skipped=skipped)
    except InputError as error:
        if data in SOURCES:
            raise InputError(f"{error} To have {data}, {SOURCES[data].how()}") from error
        raise
    for reason, count in skipped.counts.items():
        found.add("row-refused", Example(legible(skipped.first[reason]), legible(reason)), count=count)
    return records


def _judge_name(data: str, rows: Counter[str], images: dict[str, int], found: Findings) -> str:
    """Compare a named set with what it should hold, and return how to get what is missing."""
    known = DATASETS.get(data)
    judge_missing_splits(rows, [split for split in known.splits if split != "trainval"] if known else [], found)
    source = SOURCES.get(data)
    if source is None:
        return ""
    judge_counts(rows, images, source.splits, NEARLY, found)
    incomplete = found.counts.keys() & {"split-empty", "split-no-photos", "split-count", "image-missing"}
    how = f"To have {data} complete, {source.how()}" if incomplete else ""
    return " ".join(part for part in (source.note if found.counts["split-same-image"] else "", how) if part)
