"""Files and folders of annotations in any format, which their ending and their first line show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from epmvg.core.files import atomic_write
from epmvg.core.types import InputError, Sample
from epmvg.data.readers.annotations import Located, parsed, to_annotations, to_samples
from epmvg.data.readers.coco import as_coco, coco_annotations
from epmvg.data.readers.fields import Annotation
from epmvg.data.readers.files import is_file, is_folder, open_file, read_json
from epmvg.data.readers.hugging_face import folder_annotations, metadata_files, parquet_annotations, write_parquet
from epmvg.data.readers.jsonl import json_line, jsonl_annotations
from epmvg.data.readers.label_studio import is_task, task_annotations
from epmvg.data.readers.odvg import as_odvg, is_odvg, odvg_annotations
from epmvg.data.readers.webdataset import tar_annotations, write_webdataset

READABLE = (".jsonl", ".json", ".parquet", ".tar")
_WRITABLE = {".odvg.jsonl": "odvg", ".jsonl": "jsonl", ".json": "coco", ".parquet": "parquet", ".tar": "tar"}
_FIRST_BYTES = 65_536  # of a first line that are parsed


def file_samples(
    name: Path | str, *, split: str | None = None, root: Path | str | None = None, split_key: str = "split"
) -> Located[Sample]:
    """Read a file or folder in any of the formats of docs/data.md; unusable boxes and phrases are not checked.

    Args:
        name: a file, a folder, or a pattern of .tar files.
        split, root, split_key: as for `registry.open_samples`.

    Raises:
        InputError: the format is not known, or the file cannot be read.
    """
    file = Path(name)
    if is_folder(file) and not metadata_files(file):
        file /= "annotations.jsonl"
        if not is_file(file):
            raise InputError(f"{name} holds no annotations.jsonl and no metadata.jsonl. Give the file or its folder.")
    folder = Path(root) if root else file if is_folder(file) else file.parent
    ending = file.suffix.lower()
    annotations: Located[Annotation]
    if is_folder(file):
        annotations = folder_annotations(file)
    elif ending == ".tar":
        annotations, folder = tar_annotations(file)
    elif ending == ".parquet":
        annotations, unpacked = parquet_annotations(file)
        folder = unpacked or folder
    elif ending in (".json", ".jsonl"):
        annotations = _line_annotations(file) if _is_by_line(file) else _json_annotations(file)
    else:
        raise InputError(f"{name} is a file of no known format. Write it as one that ends in {', '.join(READABLE)}.")
    return to_samples(annotations, folder, split_key, split=split)


def _is_by_line(file: Path) -> bool:
    """Return whether a .json or .jsonl file holds a JSON object per line, rather than one JSON value."""
    with open_file(file) as lines:
        line = next((line for line in iter(lambda: lines.readline(_FIRST_BYTES), b"") if line.strip()), b"").strip()
    is_jsonl = file.suffix.lower() == ".jsonl"
    try:
        first = json.loads(line)
    except (RecursionError, ValueError):
        return is_jsonl and line not in (b"{", b"[")
    if isinstance(first, dict):
        return "images" not in first and (is_jsonl or "image" in first or is_odvg(first))
    return is_jsonl and not isinstance(first, list)


def _line_annotations(file: Path) -> Located[Annotation]:
    for location, line in jsonl_annotations(file):
        if is_odvg(line):
            yield from parsed(location, odvg_annotations(line, location))
        else:
            yield location, line


def _json_annotations(file: Path) -> Located[Annotation]:
    """Yield the annotations of one JSON value."""
    content: Any = read_json(file)
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        yield from coco_annotations(content, file)
    elif isinstance(content, list):
        for number, one in enumerate(content):
            location = f"{file}, entry {number}"
            if is_task(one):
                yield from parsed(location, task_annotations(one, location))
            else:
                yield (
                    location,
                    one if isinstance(one, dict) else InputError(f"{location} is not a JSON object. Fix it."),
                )
    else:
        raise InputError(
            f"{file} is neither COCO-style, ODVG, Label Studio's export nor a list of annotations. Write a format of"
            " docs/data.md."
        )


def write_file(target: Path, samples: Sequence[Sample], root: Path) -> Path:
    """Write samples in a format and return the folder that its image paths are relative to.

    Args:
        root: the folder the images of the samples lie in; paths are relative to the target's own folder where all of
            them lie in it.

    Raises:
        InputError: the ending means no format, or the format cannot hold the samples.
    """
    format_ = format_of(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    own = target.parent
    if format_ == "tar":
        write_webdataset(target, to_annotations(samples, root), root)
        return own
    base = root if any(Path(one["image"]).is_absolute() for one in to_annotations(samples, own)) else own
    annotations = to_annotations(samples, base)
    if format_ == "parquet":
        write_parquet(target, annotations)
        return base
    if format_ == "coco":
        content = json.dumps(as_coco(annotations)).encode()
    else:
        content = b"".join(map(json_line, as_odvg(annotations) if format_ == "odvg" else annotations))
    with atomic_write(target) as temporary:
        temporary.write_bytes(content)
    return base


def format_of(target: Path) -> str:
    """Return the format that the ending of a file to write means."""
    for ending, format_ in _WRITABLE.items():
        if target.name.lower().endswith(ending):
            return format_
    raise InputError(f"{target} names no format. End it in {', '.join(_WRITABLE)}.")
