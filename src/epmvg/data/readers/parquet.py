"""Parquet tables with a row a phrase: image (a path), phrase, bbox, and what else rows hold.

Columns width, height, split and id are plain; other keys stand together, as JSON, in the column `attributes`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from epmvg.core.files import atomic_write
from epmvg.core.types import InputError
from epmvg.data.readers.files import parse_json, refuse_pointer
from epmvg.data.readers.jsonl import Row, each, merged

_PLAIN = ("image", "phrase", "bbox", "width", "height", "split", "id")


def parquet_rows(file: Path) -> Iterator[tuple[str, Row | InputError]]:
    """Yield (where it stands, row or what is wrong with it) of a Parquet file.

    Raises:
        InputError: pyarrow is missing, or the file is torn or holds its pictures inside.
    """
    arrow, parquet = _arrow()
    with contextlib.suppress(OSError), file.open("rb") as start:
        refuse_pointer(start.read(100), file)
    try:
        lines = parquet.read_table(str(file), partitioning=None).to_pylist()
    except FileNotFoundError as error:
        raise InputError(f"{file} cannot be opened (No such file or directory): check the path.") from error
    except (arrow.ArrowException, OSError, ValueError, MemoryError, OverflowError, LookupError) as error:
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise InputError(f"{file} is not a Parquet table ({reason}): fetch or write it anew.") from error
    for number, line in enumerate(lines):
        where = f"{file}, row {number}"
        if isinstance(line.get("image"), dict | bytes):
            raise InputError(f"{file} holds its pictures inside: save them as files and put their paths in `image`.")
        yield from each(where, _line_rows(line, where))


def _line_rows(line: dict[str, Any], where: str) -> Iterator[Row]:
    stated = line.pop("attributes", None)
    row: Row = {key: _json_value(value) for key, value in line.items() if value is not None}
    own = parse_json(stated.encode(), where, "mend `attributes`") if isinstance(stated, str) else stated or {}
    if not isinstance(own, dict):
        raise InputError(f"{where}: `attributes` must be a JSON object; mend it.")
    yield merged(row, own)


def write_parquet(file: Path, rows: Iterable[Row]) -> None:
    """Write rows as a Parquet table.

    Raises:
        InputError: pyarrow is missing, or a value fits no column.
    """
    arrow, parquet = _arrow()
    kinds = {
        "image": arrow.string(),
        "phrase": arrow.string(),
        "bbox": arrow.list_(arrow.float64()),
        "width": arrow.int64(),
        "height": arrow.int64(),
        "split": arrow.string(),
        "id": arrow.string(),
        "attributes": arrow.string(),
    }
    lines = []
    for row in rows:
        own = {key: value for key, value in row.items() if key not in _PLAIN}
        for key in ("split", "id"):  # a row's own split may be anything
            if key in row and not isinstance(row[key], str):
                own[key] = row[key]
        plain = {key: row[key] for key in _PLAIN if key in row and key not in own}
        lines.append(plain | {"attributes": json.dumps(own) if own else None})
    try:
        table = arrow.Table.from_pylist(lines, schema=arrow.schema(list(kinds.items())))
        with atomic_write(file) as temporary:
            parquet.write_table(table, str(temporary))
    except InputError:
        raise
    except (arrow.ArrowException, ValueError, OverflowError) as error:
        raise InputError(f"{file} cannot hold these rows ({str(error).splitlines()[0]}): write JSONL.") from error


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError("Parquet needs pyarrow: pip install 'epmvg[parquet]'.") from error
    return pyarrow, pyarrow.parquet


def _json_value(value: Any) -> Any:
    """Return a value that JSON can hold; times, bytes and decimals become texts."""
    return json.loads(json.dumps(value, default=str))
