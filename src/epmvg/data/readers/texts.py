"""Texts of images without boxes: phrases or captions in JSONL or CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

from epmvg.core.types import InputError
from epmvg.data.readers.fields import Annotation, require
from epmvg.data.readers.files import read_bytes
from epmvg.data.readers.image_finder import ImageFinder
from epmvg.data.readers.jsonl import json_objects


def read_texts(file: Path, key: str, root: Path, split: str | None = None) -> dict[Path, list[str]]:
    """Return the texts of each image, images in order of first appearance.

    Args:
        file: .csv with columns image and `key`, or JSONL with lines {"image", key} or {"image", key + "s": [...]}.
        key: "phrase" or "caption".
        root: the folder that image paths are relative to and stay in.
        split: lines that state another one are left out.

    Raises:
        InputError: the file cannot be read, or a line lacks image or text.
    """
    find, texts = ImageFinder(root), dict[Path, list[str]]()
    for location, line in _csv_lines(file) if file.suffix.lower() == ".csv" else json_objects(file):
        if split is not None and line.get("split", split) != split:
            continue
        several = line.get(f"{key}s")
        own = several if isinstance(several, list) else [line.get(key)]
        image = find(line.get("image"), location)
        texts.setdefault(image, []).extend(require({key: text}, key, str, location) for text in own)
    return texts


def _csv_lines(file: Path) -> Iterator[tuple[str, Annotation]]:
    try:
        reader = csv.DictReader(StringIO(read_bytes(file).decode("utf-8-sig"), newline=""))
        for line in reader:
            yield f"{file} line {reader.line_num}", line
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} is not CSV in UTF-8 ({error}). Save it as one.") from error
