"""Files and folders of annotations in any format, which their ending and their first words show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from epmvg.core.files import atomic_write
from epmvg.core.types import InputError, Sample
from epmvg.data.readers.annotations import Located, parsed, to_annotations, to_samples
from epmvg.data.readers.coco import as_coco, coco_annotations
from epmvg.data.readers.fields import Annotation
from epmvg.data.readers.files import is_file, is_folder, open_file, parse_json, read_json
from epmvg.data.readers.hugging_face import (
    folder_annotations,
    metadata_files,
    parquet_annotations,
    write_folder,
    write_parquet,
)
from epmvg.data.readers.jsonl import json_line, jsonl_annotations
from epmvg.data.readers.label_studio import is_task, task_annotations
from epmvg.data.readers.odvg import as_odvg, is_odvg, odvg_annotations
from epmvg.data.readers.refcoco import sentence_annotation
from epmvg.data.readers.transvg import read_transvg_file
from epmvg.data.readers.webdataset import (
    tar_files,
    unpack_once,
    unpack_tar,
    unpacked_annotations,
    write_webdataset,
)

READABLE = (".jsonl", ".json", ".parquet", ".tar", ".pth", ".pkl")
_WRITABLE = {".odvg.jsonl": "odvg", ".jsonl": "jsonl", ".json": "coco", ".parquet": "parquet", ".tar": "tar"}
_FIRST_BYTES = 65_536  # of a first line that are parsed


def file_samples(
    name: Path | str,
    *,
    split: str | None = None,
    root: Path | str | None = None,
    split_key: str = "split",
    names: set[str] | None = None,
) -> Located[Sample]:
    """Read a file or folder in any of the formats of docs/data.md; unusable boxes and phrases are not checked.

    Args:
        name: a file, a folder, or a pattern of .tar files.
        split: keep only annotations whose `split_key` has this value; None keeps all.
        root: the folder that image paths are relative to and stay in; by default the file's.
        names: the names of splits are added to it.

    Raises:
        InputError: the format is not known, or the file cannot be read.
    """
    file = Path(name)
    if is_folder(file) and not metadata_files(file):
        file /= "annotations.jsonl"
        if not is_file(file):
            raise InputError(f"{name} holds no annotations.jsonl and no metadata.jsonl: name a file in it.")
    folder = Path(root) if root else file if is_folder(file) else file.parent
    ending = file.suffix.lower()
    annotations: Located[Annotation]
    if ending in (".pth", ".pkl"):
        return read_transvg_file(file, Path(root) if root else None, split)
    if is_folder(file):
        annotations = folder_annotations(file)
    elif ending == ".tar":
        folder = unpack_once(tar_files(file), "webdataset", unpack_tar)
        annotations = unpacked_annotations(folder)
    elif ending == ".parquet":
        annotations, unpacked = parquet_annotations(file)
        folder = unpacked or folder
    elif ending in (".json", ".jsonl"):
        annotations = _json_annotations(file)
    else:
        raise InputError(f"{name} is a file of no known format: write it as one that ends in {', '.join(READABLE)}.")
    return to_samples(annotations, folder, split_key, split=split, names=names)


def _json_layout(file: Path) -> Literal["jsonl", "odvg", "json"]:
    """Return whether a .json or .jsonl file holds annotations line by line, ODVG line by line, or one JSON value.

    Raises:
        InputError: the file cannot be opened, or is a Git LFS pointer.
    """
    with open_file(file) as lines:
        line = next((line for line in iter(lambda: lines.readline(_FIRST_BYTES), b"") if line.strip()), b"").strip()
    by_line = file.suffix.lower() == ".jsonl"
    try:
        first = parse_json(line, str(file))
    except InputError:
        return "jsonl" if by_line and line not in (b"{", b"[") else "json"
    if is_odvg(first):
        return "odvg"
    if isinstance(first, dict) and not isinstance(first.get("images"), list):
        return "jsonl" if by_line or {"image", "phrase", "bbox"} & first.keys() else "json"
    return "json" if isinstance(first, dict | list) and (first or not by_line) else "jsonl"


def _json_annotations(file: Path) -> Located[Annotation]:
    layout = _json_layout(file)
    if layout == "json":
        yield from _content_annotations(read_json(file), file)
        return
    for where, line in jsonl_annotations(file):
        if layout == "odvg" and not isinstance(line, InputError):
            yield from parsed(where, odvg_annotations(line, where))
        else:
            yield where, line


def _content_annotations(content: Any, file: Path) -> Located[Annotation]:
    """Yield the annotations of one JSON value.

    Raises:
        InputError: it is of no known format.
    """
    if is_odvg(content):
        yield from parsed(str(file), odvg_annotations(content, str(file)))
    elif isinstance(content, dict) and isinstance(content.get("images"), list):
        yield from coco_annotations(content, file)
    elif isinstance(content, list):
        is_label_studio = bool(content) and is_task(content[0])
        for number, one in enumerate(content):
            where = f"{file}, {'task' if is_label_studio else 'row'} {number}"
            if is_label_studio:
                yield from parsed(where, task_annotations(one, where))
            elif isinstance(one, dict) and "image" in one:
                yield where, one
            else:
                yield from parsed(where, sentence_annotation(one, where, file))
    else:
        raise InputError(
            f"{file} is neither COCO-style, MDETR, ODVG, Label Studio's export nor a list of annotations: docs/data.md"
            " lists the formats that are read."
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
    if format_ == "folder":
        target.mkdir(exist_ok=True)
        write_folder(target, to_annotations(samples, root), root)
        return target
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
    """Return the format that the ending of a file or folder to write means.

    Raises:
        InputError: none.
    """
    for ending, format_ in _WRITABLE.items():
        if target.name.lower().endswith(ending):
            return format_
    if not target.suffix:
        return "folder"
    raise InputError(f"{target} means no format: end it in {', '.join(_WRITABLE)}, or name a folder.")
