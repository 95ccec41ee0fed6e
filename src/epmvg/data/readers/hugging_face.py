"""Hugging Face's Parquet tables and `imagefolder`, a folder of images with metadata.jsonl.

Read with pyarrow and json rather than by `datasets`, which was measured (5.2): it rejects a whole folder or table for
one malformed line or an own key of two types, without naming the line; it takes 1.2 to 2.0 s to import (pyarrow 0.2 to
0.3), needs nine more packages, and copies what it reads.

Keys without a column stand together, as JSON, in the column `attributes`. In an image folder each image has one line,
{"file_name", "width", "height", "objects": {"phrase": [...], "bbox": [...], ...}}, since `datasets` finds an image by
its name alone, or is itself an annotation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from epmvg.core.extras import optional_imports
from epmvg.core.files import atomic_write
from epmvg.core.images import image_suffixes
from epmvg.core.types import InputError
from epmvg.data.readers.annotations import Located, parsed
from epmvg.data.readers.fields import Annotation, merged, picked, require
from epmvg.data.readers.files import open_file, parse_json, path_inside
from epmvg.data.readers.jsonl import jsonl_annotations
from epmvg.data.readers.webdataset import unpack_once, unpacked_annotations

_COLUMNS = ("image", "phrase", "bbox", "width", "height", "split", "id")
_SPLITS = {"valid": "val", "validation": "val", "dev": "val"}  # other names of folders


def parquet_annotations(file: Path) -> tuple[Located[Annotation], Path | None]:
    """Read a Parquet file.

    Returns:
        (location, annotation or what is wrong with it), and the folder that images inside were unpacked to.

    Raises:
        InputError: pyarrow is missing, or the file is no Parquet table.
    """
    lines = _parquet_lines(file)
    first = next(lines, None)
    if first is not None and isinstance(first.get("image"), dict | bytes):
        folder = unpack_once([file], "parquet", _unpack_parquet)
        return unpacked_annotations(folder), folder
    return _parquet_annotations(file), None


def _parquet_annotations(file: Path) -> Located[Annotation]:
    for number, line in enumerate(_parquet_lines(file)):
        location = f"{file}, row {number}"
        yield from parsed(location, _table_annotation(line, location))


def _table_annotation(line: dict[str, Any], location: str) -> Iterator[Annotation]:
    stated = {key: value for key, value in line.items() if key != "attributes" and value is not None}
    own = _attributes(line.get("attributes"), location)
    yield merged(json.loads(json.dumps(stated, default=str)), own)  # times, bytes and decimals become texts


def _unpack_parquet(file: Path, folder: Path) -> Iterator[tuple[str, Annotation]]:
    """Write the images of a table into a folder, named by their content, and yield its annotations."""
    for number, line in enumerate(_parquet_lines(file)):
        location = f"{file}, row {number}"
        image = line["image"] if isinstance(line.get("image"), dict) else {"bytes": line.get("image")}
        content = require(image, "bytes", bytes, location)
        suffix = PurePosixPath(str(image.get("path"))).suffix.lower()
        name = hashlib.sha256(content).hexdigest()[:32] + (suffix if suffix in image_suffixes() else "")
        (folder / name).write_bytes(content)
        for annotation in _table_annotation(line | {"image": name}, location):
            yield location, annotation


def _parquet_lines(file: Path) -> Iterator[dict[str, Any]]:
    arrow, parquet = _import_arrow()
    open_file(file).close()
    try:
        for batch in parquet.ParquetFile(str(file)).iter_batches():
            yield from batch.to_pylist()
    except (arrow.ArrowException, OSError, ValueError, MemoryError, OverflowError, LookupError) as error:
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise InputError(f"{file} is not a Parquet table ({reason}). Write or download it again.") from error


def write_parquet(file: Path, annotations: Iterable[Annotation]) -> None:
    """Write annotations as a Parquet table.

    Raises:
        InputError: pyarrow is missing, or a value fits no column.
    """
    arrow, parquet = _import_arrow()
    types = {key: arrow.string() for key in (*_COLUMNS, "attributes")}
    types |= {"bbox": arrow.list_(arrow.float64()), "width": arrow.int64(), "height": arrow.int64()}
    lines = []
    for one in annotations:
        own = {key: value for key, value in one.items() if not _fits_column(key, value)}
        plain = {key: value for key, value in one.items() if key not in own}
        lines.append(plain | {"attributes": json.dumps(own) if own else None})
    try:
        table = arrow.Table.from_pylist(lines, schema=arrow.schema(list(types.items())))
        with atomic_write(file) as temporary:
            parquet.write_table(table, str(temporary))
    except (arrow.ArrowException, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} cannot hold an annotation ({str(error).splitlines()[0]}). Write JSONL.") from error


def metadata_files(folder: Path) -> list[Path]:
    """Return the metadata.jsonl of a folder and those of folders in it, up to two levels down."""
    return [file for level in ("", "*/", "*/*/") for file in sorted(folder.glob(f"{level}metadata.jsonl"))]


def folder_annotations(folder: Path) -> Located[Annotation]:
    """Yield (location, annotation or what is wrong with it) of an image folder.

    It may hold folders, one or two levels down, with a metadata.jsonl each, whose names are splits as `datasets` reads
    them.
    """
    for file in metadata_files(folder):
        below = file.parent.relative_to(folder).as_posix()
        split: Annotation = {} if below == "." else {"split": _SPLITS.get(file.parent.name, file.parent.name)}
        for location, line in jsonl_annotations(file):
            if isinstance(line, InputError):
                yield location, line
                continue
            for at, one in parsed(location, _line_annotations(line, location)):
                image = {"image": f"{below}/{line.get('file_name')}"}
                yield at, one if isinstance(one, InputError) else split | one | image


def _line_annotations(line: Annotation, location: str) -> Iterator[Annotation]:
    """Yield the annotations of one line, without their image."""
    path_inside(Path(), require(line, "file_name", str, location), location)
    if "objects" not in line:
        yield {key: value for key, value in line.items() if key != "file_name"}
        return
    columns = require(line, "objects", dict, location)
    count = len(require(columns, "phrase", list, location))
    for key, values in columns.items():
        if not isinstance(values, list) or len(values) != count:
            raise InputError(f'{location}: "objects.{key}" must be a list as long as "objects.phrase". Fix the line.')
    for number in range(count):
        one = {key: values[number] for key, values in columns.items() if values[number] not in (None, "")}
        own = _attributes(one.pop("attributes", None), location)
        yield merged(picked(line, "width", "height"), merged(one, own))


def _fits_column(key: str, value: object) -> bool:
    return key in _COLUMNS and (key not in ("split", "id") or isinstance(value, str))


def _attributes(value: object, location: str) -> Annotation:
    """Return the keys that the column `attributes` holds, as JSON."""
    own = parse_json(value.encode("utf-8", "replace"), f"{location}: `attributes`") if isinstance(value, str) else value
    if own is not None and not isinstance(own, dict):
        raise InputError(f"{location}: `attributes` must be a JSON object. Fix the annotation.")
    return own or {}


def _import_arrow() -> tuple[Any, Any]:
    with optional_imports("Parquet"):
        import pyarrow
        import pyarrow.parquet
    return pyarrow, pyarrow.parquet
