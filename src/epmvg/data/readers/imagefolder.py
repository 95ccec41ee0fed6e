"""A folder of pictures with metadata.jsonl, as Hugging Face `datasets` loads it with `imagefolder`.

Each picture has one line, {"file_name", "width", "height", "objects": {"phrase": [...], "bbox": [...], ...}}, since
`datasets` knows a picture by its name alone; `objects.row` keeps the order of rows across pictures, and keys without a
column stand in `objects.attributes` as JSON. A line that is itself a row (with "phrase" and "bbox") is read too.
A folder may have folders with a metadata.jsonl each, one or two levels down, whose names are splits as `datasets` reads
them: `valid`, `validation` and `dev` are val, `training` is train, `testing` and `eval` are test.
"""

from __future__ import annotations

import filecmp
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from epmvg.core.files import atomic_write, disk_errors
from epmvg.core.types import InputError
from epmvg.data.readers.files import inside, need, parse_json
from epmvg.data.readers.jsonl import Row, each, json_line, line_rows, merged

_PLAIN = ("phrase", "bbox", "split", "id")
_SPLITS = {"valid": "val", "validation": "val", "dev": "val", "training": "train", "testing": "test", "eval": "test"}
_SPLITS |= {"evaluation": "test"}


def metadata_files(folder: Path) -> list[Path]:
    """Return the metadata.jsonl of a folder and those of folders in it, up to two levels down."""
    return [file for level in ("", "*/", "*/*/") for file in sorted(folder.glob(f"{level}metadata.jsonl"))]


def folder_rows(folder: Path) -> Iterator[tuple[str, Row | InputError]]:
    """Yield (where it stands, row or what is wrong with it) of an image folder, in the order they were written."""
    rows: list[tuple[int, str, Row | InputError]] = []
    for file in metadata_files(folder):
        below = file.parent.relative_to(folder).as_posix()
        split = _SPLITS.get(file.parent.name, file.parent.name) if below != "." else None
        for where, line in line_rows(file):
            start = len(rows)
            if isinstance(line, InputError):
                rows.append((start, where, line))
                continue
            for at, row in each(where, _line_rows(line, where, start)):
                if isinstance(row, InputError):
                    rows.append((start, at, row))
                else:
                    stated: Row = {"split": split} if split else {}
                    rows.append((row[0], at, stated | row[1] | {"image": f"{below}/{line['file_name']}"}))
    rows.sort(key=lambda row: row[0])
    yield from ((where, row) for _, where, row in rows)


def write_folder(folder: Path, rows: Iterable[Row], root: Path) -> None:
    """Copy the pictures of rows from a root into a folder and write its metadata.jsonl last.

    Raises:
        InputError: a picture is missing, or another file has its place in the folder; nothing is written then.
    """
    lines: dict[str, Row] = {}
    for number, row in enumerate(rows):
        name = row["image"]
        if name not in lines:
            size = {key: row[key] for key in ("width", "height") if key in row}
            columns: dict[str, list[Any]] = {key: [] for key in (*_PLAIN, "attributes", "row")}
            lines[name] = {"file_name": name} | size | {"objects": columns}
        columns = lines[name]["objects"]
        own = {key: value for key, value in row.items() if key not in ("image", "width", "height", *_PLAIN)}
        for key in ("split", "id"):
            if not isinstance(row.get(key, ""), str):
                own[key] = row[key]
            columns[key].append("" if key in own else row.get(key, ""))
        columns["phrase"].append(row["phrase"])
        columns["bbox"].append(row["bbox"])
        columns["attributes"].append(json.dumps(own))
        columns["row"].append(number)
    copies = {inside(root, name, str(folder)): inside(folder, name, str(folder)) for name in lines}
    for source, target in copies.items():
        _check_copy(source, target)
    for source, target in copies.items():
        if not target.exists():
            with disk_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
    with atomic_write(folder / "metadata.jsonl") as temporary:
        temporary.write_bytes(b"".join(json_line(line) for line in lines.values()))


def _line_rows(line: Row, where: str, following: int) -> Iterator[tuple[int, Row]]:
    """Yield the (place, row) pairs of one line, without their picture's name."""
    inside(Path(), need(line, "file_name", str, where), where)
    size: Row = {key: line[key] for key in ("width", "height") if key in line}
    if "objects" not in line:
        yield following, {key: value for key, value in line.items() if key != "file_name"}
        return
    columns = need(line, "objects", dict, where)
    count = len(need(columns, "phrase", list, where))
    for key, values in columns.items():
        if not isinstance(values, list) or len(values) != count:
            raise InputError(f'{where}: "objects.{key}" must be a list as long as "objects.phrase"; mend the line.')
    for number in range(count):
        row = {key: values[number] for key, values in columns.items() if key not in ("attributes", "row")}
        row = {key: value for key, value in row.items() if value is not None and (key not in _PLAIN or value != "")}
        if "attributes" in columns:
            own = parse_json(str(columns["attributes"][number]).encode("utf-8", "replace"), where, "mend `attributes`")
            if not isinstance(own, dict):
                raise InputError(f"{where}: `attributes` must hold JSON objects; mend the line.")
            row = merged(row, own)
        place = columns["row"][number] if "row" in columns else following + number
        if not isinstance(place, int):
            raise InputError(f'{where}: "objects.row" must hold whole numbers; mend the line.')
        yield place, merged(size, row)


def _check_copy(source: Path, target: Path) -> None:
    """Raise InputError unless a picture can be copied, or lies in its place already."""
    if not source.is_file():
        raise InputError(f"{source} does not exist, and an image folder holds its pictures: give --root.")
    if target.exists() and not filecmp.cmp(source, target, shallow=False):
        raise InputError(f"{target} is another file than {source}: choose another folder.")
