"""A folder of pictures with metadata.jsonl, as Hugging Face `datasets` loads it with `imagefolder`.

Each picture has one line, {"file_name", "width", "height", "objects": {"phrase": [...], "bbox": [...], ...}}, since
`datasets` knows a picture by its name alone; `objects.row` keeps the order of rows across pictures, and keys without a
column stand in `objects.attributes` as JSON. A line that is itself a row (with "phrase" and "bbox") is read too.
A folder may have a folder a split (train/, validation/, test/) with a metadata.jsonl each.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from epmvg.data.files import inside, need, parse_json
from epmvg.data.jsonl import Row, json_line, json_lines
from epmvg.types import InputError
from epmvg.writing import replacing

_PLAIN = ("phrase", "bbox", "split", "id")


def metadata_files(folder: Path) -> list[Path]:
    """Return the metadata.jsonl of a folder, or those of its split folders."""
    own = folder / "metadata.jsonl"
    return [own] if own.is_file() else sorted(folder.glob("*/metadata.jsonl"))


def folder_rows(folder: Path) -> Iterator[tuple[str, Row]]:
    """Yield (where it stands, row) of an image folder, in the order they were written.

    Raises:
        InputError: a line is not as described above.
    """
    rows: list[tuple[int, str, Row]] = []
    for file in metadata_files(folder):
        split = file.parent.name if file.parent != folder else None
        for where, line in json_lines(file):
            name = need(line, "file_name", str, where)
            inside(file.parent, name, where)
            picture: Row = {"image": f"{split}/{name}" if split else name}
            picture |= {"split": "val" if split == "validation" else split} if split else {}
            rows += [(place, where, picture | row) for place, row in _line_rows(line, where, len(rows))]
    rows.sort(key=lambda row: row[0])
    yield from ((where, row) for _, where, row in rows)


def write_folder(folder: Path, rows: Iterable[Row], root: Path) -> None:
    """Copy the pictures of rows from a root into a folder and write its metadata.jsonl last.

    Raises:
        InputError: a picture is missing.
    """
    lines: dict[str, Row] = {}
    for number, row in enumerate(rows):
        name = row["image"]
        if name not in lines:
            _copy(inside(root, name, str(folder)), folder / name)
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
    with replacing(folder / "metadata.jsonl") as temporary:
        temporary.write_bytes(b"".join(json_line(line) for line in lines.values()))


def _line_rows(line: Row, where: str, following: int) -> Iterator[tuple[int, Row]]:
    """Yield the (place, row) pairs of one line, without their picture's name."""
    size = {key: line[key] for key in ("width", "height") if key in line}
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
            row |= own
        place = columns["row"][number] if "row" in columns else following + number
        if not isinstance(place, int):
            raise InputError(f'{where}: "objects.row" must hold whole numbers; mend the line.')
        yield place, size | row


def _copy(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.resolve(strict=True) != target.resolve():
            shutil.copyfile(source, target)
    except FileNotFoundError as error:
        raise InputError(f"{source} does not exist, and an image folder holds its pictures: give --root.") from error
