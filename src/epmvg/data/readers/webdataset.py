"""Tar files in WebDataset's layout, an image and its rows side by side: `000017.jpg`, `000017.json`.

The JSON is one row or a list of rows as in JSONL, without `image`. A tar is unpacked once, into the cache folder, and
read from there as files; nothing else in the package knows tar files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path, PurePosixPath

from filelock import FileLock

from epmvg.core.files import atomic_write, disk_errors
from epmvg.core.images import image_suffixes
from epmvg.core.types import InputError
from epmvg.data.readers.files import inside, is_file, parse_json, read_bytes, shown
from epmvg.data.readers.jsonl import Row, json_line, json_lines

SHARD_BYTES = 500_000_000
"""Image bytes after which the next of several files begins."""

_ROWS = "rows.jsonl"
_NUMBER = re.compile(r"%(?:0\d)?d")


def tar_files(name: Path | str) -> list[Path]:
    """Return the files that a name means, in order: one .tar file, or a pattern such as `shards/train-*.tar`.

    Raises:
        InputError: there are none that can be read.
    """
    path = Path(name)
    files = sorted(path.parent.glob(path.name)) if "*" in path.name else [path]
    if not files or not all(is_file(file) and os.access(file, os.R_OK) for file in files):
        raise InputError(f"{name} cannot be opened: check the path and its permissions.")
    return files


def unpack(files: Sequence[Path], cache: Path) -> Path:
    """Unpack tar files of one folder below a cache folder, unless they lie there, and return where.

    Raises:
        InputError: a file is no plain tar, or holds a link, a name that leads out, or several images of one sample.
    """
    states = [(file.resolve().as_posix(), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    folder = cache / hashlib.sha256(repr(states).encode(errors="replace")).hexdigest()[:32]
    temporary = folder.with_suffix(".part")
    if folder.exists():
        return folder
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.exists():  # else another process has unpacked them meanwhile
                shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
                try:
                    temporary.mkdir()
                    with (temporary / _ROWS).open("wb") as out:
                        out.writelines(json_line(line) for file in files for line in _unpacked(file, temporary))
                    temporary.rename(folder)
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
    return folder


def unpacked_rows(folder: Path) -> Iterator[tuple[str, Row]]:
    """Yield (tar and member, row) of an unpacked folder, which image paths are relative to."""
    for _, line in json_lines(folder / _ROWS):
        yield line["where"], line["row"]


def _unpacked(file: Path, folder: Path) -> Iterator[Row]:
    """Unpack the images of one tar into a folder of its name, and yield each row with where it stands."""
    try:
        with tarfile.open(file, "r:") as tar:
            for sample in _samples(tar, file):
                if len(sample) < 2:
                    continue
                where = f"{file}, {shown(sample['json'].name)}"
                image = f"{file.name}/{PurePosixPath(sample['image'].name)}"
                content = {kind: tar.extractfile(member).read() for kind, member in sample.items()}  # type: ignore[union-attr]
                target = inside(folder, image, where)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content["image"])
                rows = parse_json(content["json"], where, "write the file again")
                for row in rows if isinstance(rows, list) else [rows]:
                    if not isinstance(row, dict):
                        raise InputError(f"{where} holds a row that is no JSON object: write the file again.")
                    yield {"where": where, "row": row | {"image": image}}
    except InputError:
        raise
    except (tarfile.TarError, EOFError, ArithmeticError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is no plain tar file ({error}): write it again, without compression.") from error


def _samples(tar: tarfile.TarFile, file: Path) -> Iterable[dict[str, tarfile.TarInfo]]:
    """Return the image and the JSON of each sample, whose names are the same up to the first dot."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in tar:
        path, where = PurePosixPath(member.name), f"{file}, {shown(member.name)}"
        if member.isdir():
            continue
        if not member.isreg() or member.issparse() or member.size < 0:
            raise InputError(f"{where} is no ordinary file: write the tar again without links and devices.")
        if path.is_absolute() or ".." in path.parts:
            raise InputError(f"{where} leads out of the folder it is unpacked to: write the tar again.")
        key, _, extension = path.name.partition(".")
        kind = "image" if path.suffix.lower() in image_suffixes() else extension.lower()
        if key and kind in ("image", "json"):
            sample = samples.setdefault((path.parent / key).as_posix(), {})
            if kind in sample:
                raise InputError(f"{where} and {shown(sample[kind].name)} are of one sample: keep one, or rename it.")
            sample[kind] = member
    return samples.values()


def numbered_files(target: Path) -> dict[int, Path]:
    """Return the files that lie where a conversion to `NAME-%05d.tar` writes, by number."""
    before, *after = _NUMBER.split(target.name, 1)
    name = re.compile(rf"{re.escape(before)}(\d+){re.escape(''.join(after))}")
    lying = target.parent.iterdir() if after and target.parent.is_dir() else ()
    return {int(found[1]): file for file in lying if (found := name.fullmatch(file.name))}


def write_webdataset(target: Path, rows: Iterable[Row], root: Path) -> None:
    """Write rows and their images to a tar, or to several with `%05d` in its name; all of them appear, or none.

    Raises:
        InputError: an image is missing, or files of a longer conversion lie there.
    """
    samples: dict[Path, list[Row]] = {}
    for row in rows:
        own = {key: row[key] for key in row if key != "image"}
        samples.setdefault(inside(root, row["image"], str(target)), []).append(own)
    numbered, shards = _NUMBER.search(target.name), [dict[Path, list[Row]]()]
    size = 0
    for image, own_rows in samples.items():
        if not is_file(image) or image.suffix.lower() not in image_suffixes():
            raise InputError(f"{image} is not there or has no image's ending, and a tar holds its images: give --root.")
        if numbered and size > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][image] = own_rows
        size += image.stat().st_size
    stale = [file for number, file in numbered_files(target).items() if number >= len(shards)]
    if stale:
        raise InputError(f"{min(stale)} would be read with the {len(shards)} files to write: delete it first.")
    with ExitStack() as stack:
        for number, shard in enumerate(shards):
            name = target.name.replace(numbered[0], numbered[0] % number, 1) if numbered else target.name
            with tarfile.open(stack.enter_context(atomic_write(target.with_name(name))), "w") as tar:
                for place, (image, own_rows) in enumerate(shard.items()):
                    key = f"{number:05d}{place:06d}"  # unique among all files
                    _add(tar, key + image.suffix.lower(), read_bytes(image))
                    _add(tar, f"{key}.json", json.dumps(own_rows).encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file without owner or time, so that the same rows make the same bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, BytesIO(content))
