"""Shards: tar files as WebDataset reads them, a picture and its rows side by side (`000017.jpg`, `000017.json`).

The JSON is `{"rows": [...]}`, rows as in JSONL but without `image`, or a single such row.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath

from epmvg.data.archives import is_there, members, read_member, source_of
from epmvg.data.files import inside, need, parse_json
from epmvg.data.jsonl import Row, Skipped, read_rows
from epmvg.types import InputError, Record

A_SHARD = 1000
"""Pictures in a shard."""


def shard_files(name: str) -> list[Path]:
    """Return the shards that a name means, in order: one .tar file, or a pattern such as `shards/train-*.tar`.

    Raises:
        InputError: there are none.
    """
    path = Path(name)
    files = sorted(path.parent.glob(path.name)) if "*" in path.name else [path]
    if not files:
        raise InputError(f"No file fits {name}: check the path.")
    return files


def shard_rows(file: Path) -> Iterator[tuple[str, Row]]:
    """Yield (where it stands, row) of a shard; `image` is the path of a picture from the shard's folder.

    Raises:
        InputError: the file is no tar, or a JSON in it is not as described above or has no picture.
    """
    names = members(file)
    pictures = {_key(name): name for name in names if not name.endswith(".json")}
    for name in names:
        if not name.endswith(".json"):
            continue
        where = f"{file}, {name}"
        told = parse_json(read_member(file, name), where, "write the shard again")
        rows = need(told, "rows", list, where) if isinstance(told, dict) and "rows" in told else [told]
        picture = pictures.get(_key(name))
        if picture is None:
            raise InputError(f"{where} has no picture beside it: write the shard again.")
        inside(file, picture, where)
        for row in rows:
            if not isinstance(row, dict):
                raise InputError(f"{where} holds a row that is no JSON object: write the shard again.")
            yield where, row | {"image": f"{file.name}/{picture}"}


def read_shards(
    files: Sequence[Path], *, split: str | None = None, split_key: str = "split", skipped: Skipped | None = None
) -> list[Record]:
    """Read the records of shards that lie in one folder; arguments and errors as `read_jsonl`."""
    rows = (pair for file in files for pair in shard_rows(file))
    return read_rows(rows, files[0].parent, str(files[0]), split=split, split_key=split_key, skipped=skipped)


def write_shards(target: Path, rows: Iterable[Row], root: Path) -> None:
    """Copy the pictures of rows from a root into a tar file, or, with `%05d` in its name, into one each `A_SHARD`.

    Raises:
        InputError: a picture is missing.
    """
    by_picture: dict[str, list[Row]] = {}
    for row in rows:
        by_picture.setdefault(row["image"], []).append({key: row[key] for key in row if key != "image"})
    pictures = list(by_picture.items())
    size = A_SHARD if "%" in target.name else len(pictures)
    for number, start in enumerate(range(0, len(pictures), size)):
        file = target.with_name(target.name % number) if "%" in target.name else target
        temporary = file.with_name(file.name + ".part")
        with tarfile.open(temporary, "w") as tar:
            for place, (name, own) in enumerate(pictures[start : start + size], start):
                picture = inside(root, name, str(target))
                if not is_there(picture):
                    temporary.unlink()
                    raise InputError(f"{picture} does not exist, and a shard holds its pictures: give --root.")
                source = source_of(picture)
                content = source.read_bytes() if isinstance(source, Path) else source.read()
                _add(tar, f"{place:08d}{picture.suffix.lower()}", content)
                _add(tar, f"{place:08d}.json", json.dumps({"rows": own}).encode())
        temporary.replace(file)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file without owner or time, so that the same rows are the same bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, BytesIO(content))


def _key(name: str) -> str:
    """Return what the files of one sample share: the path up to the first dot of its last part."""
    path = PurePosixPath(name)
    return str(path.with_name(path.name.split(".", 1)[0] or path.name))
