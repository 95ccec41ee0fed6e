"""The doctor: finds what is missing, broken, duplicated or leaked in a data set, and says it plainly."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epmvg.core.files import check_not_input
from epmvg.core.types import InputError, Progress, Sample
from epmvg.data.convert import reject_inputs, write_samples
from epmvg.data.readers.annotations import Skipped, sample_error, to_samples
from epmvg.data.readers.files import is_file, is_folder
from epmvg.data.readers.formats import json_layout
from epmvg.data.readers.jsonl import jsonl_annotations
from epmvg.data.registry import DATASETS, open_samples
from epmvg.data.validation.checks import Examination, judge_missing_splits, judge_trainable
from epmvg.data.validation.findings import Example, Finding, Findings, legible
from epmvg.data.validation.images import Images, judge_images
from epmvg.data.validation.kinds import KINDS
from epmvg.data.validation.leaks import judge_list, judge_splits
from epmvg.data.validation.rows import Entry, count_lines, entries_of, read_entries, record_name

__all__ = ["Diagnosis", "check"]

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
    written: int | None = None  # rows in the file of clean ones, if it was asked for

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    @property
    def usable(self) -> bool:
        """Whether nothing was found that cannot be used as it is."""
        return all(one.kind.weight == "warning" for one in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        head = {"data": self.data, "clean": self.clean, "usable": self.usable}
        head |= {"rows": self.rows, "images": self.images, "written": self.written}
        tail = {"findings": [one.as_dict() for one in self.findings], "seconds": round(self.seconds, 1)}
        return head | {"splits": self.splits} | tail

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
    against: Path | str | None = None,
    clean: Path | str | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Look at every row and photo of a data set and say what is wrong.

    JSONL is read as it stands, row by row; other formats through their readers.

    Args:
        data: a name of `epmvg list datasets`, or a file or folder.
        root: the folder the set lies in; for a file, what its image paths are relative to, by default its folder.
        against: a text file of image names or ids, one a line, that evaluation must not hold.
        clean: a file or folder to write the rows to that have no error, each once, in the format that its ending means.
        progress: called with (rows looked at, lines of the file or records).

    Raises:
        InputError: the data or the list cannot be read at all, or no clean rows can be written.
    """
    start = time.perf_counter()
    found = Findings()
    if clean is not None:
        check_not_input(clean, against)
        reject_inputs(Path(clean), data, root)
    file = _jsonl_file(data, root)
    base = Path(root) if root is not None and data not in DATASETS else file.parent if file else Path()
    entries: Iterable[Entry]
    key = _JSONL_SETS.get(data, "split")
    records: list[Sample] = []
    if file is not None:
        total = count_lines(file)
        entries = read_entries(file, key, found)
    else:
        records = _from_reader(data, root, key, found)
        total, entries = len(records), entries_of(records)
    with Images(base) as images:
        seen = Examination(images, found)
        seen.read(entries, total, progress)
        splits = seen.names()
        judge_images(images, splits, found)
        seen.close()
        judge_splits(images, splits, found)
        if against is not None:
            judge_list(images, splits, Path(against), found)
        counts = {split: sum(one.splits >> number & 1 for one in images) for split, number in seen.splits.items()}
        number_of_images = sum(1 for _ in images)
    known = DATASETS.get(data)
    judge_missing_splits(seen.rows, [split for split in known.splits if split != "trainval"] if known else [], found)
    if known is None:
        judge_trainable(seen.rows, found)
    written = None
    if clean is not None:
        named = _named_rows(file, base, key) if file is not None else _named_records(records)
        written = _write_clean(Path(clean), named, found, Path(root) if root is not None else base)
    table = {split: {"images": counts[split], "phrases": seen.rows[split]} for split in splits}
    seconds = time.perf_counter() - start
    return Diagnosis(data, seen.rows.total(), number_of_images, table, found.listed(), seconds, written)


def _named_rows(file: Path, root: Path, split_key: str) -> Iterator[tuple[str, Sample | InputError]]:
    for where, record in to_samples(jsonl_annotations(file), root, split_key):
        yield where.removeprefix(f"{file} "), record


def _named_records(records: Iterable[Sample]) -> Iterator[tuple[str, Sample]]:
    for number, record in enumerate(records, 1):
        yield record_name(number, record), record


def _write_clean(target: Path, named: Iterable[tuple[str, Sample | InputError]], found: Findings, root: Path) -> int:
    """Write the rows that have no error, each once, and return how many they are.

    Raises:
        InputError: there are none, or the boxes of the whole file are of another convention.
    """
    errors = [name for name in found.counts if KINDS[name].weight == "error"]
    whole = next((name for name in errors if "the whole file" in found.rows.get(name, [])), None)
    if whole is not None:
        raise InputError(f"{target} was not written: {KINDS[whole].title}, in the whole file. {KINDS[whole].cure}")
    bad = found.copies.union(*(found.rows.get(name, []) for name in errors))
    kept = [
        record
        for where, record in named
        if not isinstance(record, InputError)
        and where not in bad
        and record.image not in found.bad_images
        and sample_error(record) is None
    ]
    if not kept:
        raise InputError(f"{target} was not written: no row is without an error.")
    write_samples(target, kept, root)
    return len(kept)


def _jsonl_file(data: str, root: Path | str | None) -> Path | None:
    """Return the JSONL file that holds a data set, if one does."""
    if data in _JSONL_SETS:
        folder = Path(root) if root is not None else DATASETS[data].default_root()
        if folder is None or not (folder / "annotations.jsonl").is_file():
            open_samples(data, split=None, root=root)  # draws the scenes, or says what is missing
        return (folder or Path()) / "annotations.jsonl"
    if data in DATASETS:
        return None
    file = Path(data)
    if is_folder(file) and is_file(file / "annotations.jsonl") and not is_file(file / "metadata.jsonl"):
        return file / "annotations.jsonl"
    if file.suffix.lower() in (".json", ".jsonl") and (not is_file(file) or json_layout(file) == "jsonl"):
        return file
    return None


def _from_reader(data: str, root: Path | str | None, split_key: str, found: Findings) -> list[Sample]:
    """Read records, and note what the reader left out."""
    skipped = Skipped()
    records = open_samples(data, split=None, root=root, split_key=split_key, skipped=skipped)
    for where, reason in skipped.every:
        found.add("row-refused", Example(legible(where, 300), legible(reason)))
    return records
