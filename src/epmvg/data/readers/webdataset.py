"""Tar files in WebDataset's layout, an image and its annotations side by side: `000017.jpg`, `000017.json`.

The JSON is one annotation or a list of them as in JSONL, without `image`. A tar is unpacked once, into the cache
folder, and read from there as files, like Parquet files with embedded images.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BytesIO
from itertools import chain
from pathlib import Path, PurePosixPath

from epmvg.core.files import atomic_write
from epmvg.core.images import image_suffixes
from epmvg.core.types import InputError
from epmvg.data.readers.annotations import Located
from epmvg.data.readers.fields import Annotation, short_repr
from epmvg.data.readers.files import build_folder, cache_folder, is_file, parse_json, path_inside, read_bytes
from epmvg.data.readers.jsonl import json_line, json_objects

_ANNOTATIONS = "annotations.jsonl"  # of an unpacked file

Unpack = Callable[[Path, Path], Iterator[tuple[str, Annotation]]]
"""(file, folder) -> (location, annotation); writes images into the folder, which their paths are relative to."""


def tar_files(name: Path | str) -> list[Path]:
    """Expand a path or a glob pattern such as `shards/train-*.tar` to files, in order."""
    path = Path(name)
    files = sorted(path.parent.glob(path.name)) if "*" in path.name else [path]
    if not files or not all(is_file(file) and os.access(file, os.R_OK) for file in files):
        raise InputError(f"{name} cannot be opened. Check the path and its permissions.")
    return files


def tar_annotations(name: Path) -> tuple[Located[Annotation], Path]:
    """Unpack the tars of a path or pattern; return (location, annotation) and the folder of the images."""
    folder = unpack_once(tar_files(name), "webdataset", _unpack_tar)
    return unpacked_annotations(folder), folder


def _unpack_tar(file: Path, folder: Path) -> Iterator[tuple[str, Annotation]]:
    """Unpack the images of a tar into a folder of its name, and yield (location, annotation)."""
    try:
        with tarfile.open(file, "r:") as tar:
            for members in _samples(tar, file):
                location = f"{file}, {short_repr(members['json'].name)}"
                image = f"{file.name}/{PurePosixPath(members['image'].name)}"
                content = {kind: tar.extractfile(member).read() for kind, member in members.items()}  # type: ignore[union-attr]
                target = path_inside(folder, image, location)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content["image"])
                annotations = parse_json(content["json"], location)
                for annotation in annotations if isinstance(annotations, list) else [annotations]:
                    if not isinstance(annotation, dict):
                        raise InputError(
                            f"{location} has an annotation that is not a JSON object. Write the file again."
                        )
                    yield location, annotation | {"image": image}
    except (tarfile.TarError, EOFError, ArithmeticError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} is not an uncompressed tar ({error}). Write it again without compression.") from error


def _samples(tar: tarfile.TarFile, file: Path) -> Iterator[dict[str, tarfile.TarInfo]]:
    """Yield the image and the JSON of each sample that has both; their names are the same up to the first dot."""
    samples: dict[str, dict[str, list[tarfile.TarInfo]]] = {}
    for member in tar:
        path, location = PurePosixPath(member.name), f"{file}, {short_repr(member.name)}"
        if member.isdir():
            continue
        if not member.isreg() or member.issparse() or member.size < 0:
            raise InputError(f"{location} is not a regular file. Write the tar again without links and devices.")
        if path.is_absolute() or ".." in path.parts:
            raise InputError(f"{location} is outside the target folder. Write the tar again.")
        key = path.name.partition(".")[0]
        kind = "image" if path.suffix.lower() in image_suffixes() else path.suffix[1:].lower()
        if key and kind in ("image", "json"):
            samples.setdefault((path.parent / key).as_posix(), {}).setdefault(kind, []).append(member)
    for members in samples.values():
        if len(members) == 2:
            plain = [one for one in members["json"] if PurePosixPath(one.name).name.count(".") == 1]
            members["json"] = plain or members["json"]  # `0.json` rather than `0.meta.json`
            for first, *others in members.values():
                if others:
                    location = f"{file}, {short_repr(others[0].name)}"
                    raise InputError(
                        f"{location} and {short_repr(first.name)} are of one sample. Delete or rename one."
                    )
            yield {kind: one for kind, (one,) in members.items()}


def write_webdataset(target: Path, annotations: Iterable[Annotation], root: Path) -> None:
    """Write annotations and their images to a tar.

    Raises:
        InputError: an image is missing.
    """
    images: dict[Path, list[Annotation]] = {}
    for one in annotations:
        image = path_inside(root, one["image"], str(target))
        if not is_file(image) or image.suffix.lower() not in image_suffixes():
            raise InputError(f"{image} is missing or has no image suffix, and a tar holds its images. Give --root.")
        images.setdefault(image, []).append({key: value for key, value in one.items() if key != "image"})
    with atomic_write(target) as temporary, tarfile.open(temporary, "w") as tar:
        for number, (image, image_annotations) in enumerate(images.items()):
            _add(tar, f"{number:06d}{image.suffix.lower()}", read_bytes(image))
            _add(tar, f"{number:06d}.json", json.dumps(image_annotations).encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file without owner or time, so that the same samples make the same bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, BytesIO(content))


def unpack_once(files: Sequence[Path], kind: str, unpack: Unpack) -> Path:
    """Unpack files below the cache folder, unless that was done before, and return location."""
    states = [(file.resolve().as_posix(), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    folder = cache_folder() / kind / hashlib.sha256(repr(states).encode(errors="replace")).hexdigest()[:32]

    def build(temporary: Path) -> None:
        with (temporary / _ANNOTATIONS).open("wb") as out:
            for location, one in chain.from_iterable(unpack(file, temporary) for file in files):
                out.write(json_line({"where": location, "annotation": one}))

    build_folder(folder, build)
    return folder


def unpacked_annotations(folder: Path) -> Iterator[tuple[str, Annotation]]:
    """Yield (location, annotation) of an unpacked folder."""
    for _, line in json_objects(folder / _ANNOTATIONS):
        yield line["where"], line["annotation"]
