"""From any data set or format to any format that can hold it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from epmvg.core.files import check_not_input
from epmvg.core.types import Sample
from epmvg.data.readers.files import is_file, is_folder
from epmvg.data.readers.formats import kind_of, write_file
from epmvg.data.readers.imagefolder import metadata_files
from epmvg.data.readers.jsonl import Skipped
from epmvg.data.readers.webdataset import numbered_files, tar_files
from epmvg.data.registry import DATASETS, open_samples


def convert_data(
    name: str,
    target: Path,
    *,
    split: str | None = None,
    root: str | Path | None = None,
    split_key: str = "split",
) -> dict[str, Any]:
    """Read a data set by name or file and write it in another format.

    Args:
        target: the file or folder to write; its ending says the format.
        split, root, split_key: as for `open_records`.

    Returns:
        rows and images written, to (the target), format, root (the folder that image paths there are relative to),
        rotated: boxes read as the upright ones around turned ones, skipped: reason -> rows that cannot be used,
        first_skipped: reason -> the first of them.

    Raises:
        InputError: as `open_records`, or the format cannot hold the rows, or the target is one of the
            files that are read.
    """
    kind = kind_of(target)
    refuse_inputs(target, name, root)
    skipped = Skipped()
    records = open_samples(name, split=split, root=root, split_key=split_key, skipped=skipped)
    base = write_records(target, records, root, kind)
    return {
        "rows": len(records),
        "images": len({record.image for record in records}),
        "to": str(target),
        "format": kind,
        "root": str(base),
        "rotated": sum("rotated" in record.extra for record in records),
        "skipped": dict(skipped.counts),
        "first_skipped": dict(skipped.first),
    }


def write_records(target: Path, records: list[Sample], root: str | Path | None, kind: str | None = None) -> Path:
    """Write records that were read from a data set, and return the folder that image paths are relative to.

    Args:
        root: the folder their images lie in; by default the folder that these have in common.

    Raises:
        InputError: the target is one of the images, or as `write_file`.
    """
    refuse_images(target, {record.image for record in records})
    common = Path(os.path.commonpath([record.image.absolute().parent for record in records]))
    return write_file(target, records, Path(root) if root else common, kind)


_ANNOTATIONS = re.compile(
    r"(annotations|captions)\.jsonl|instances\.json|refs\(.*|referit_\w+\.json|.+_(train|val|trainval|test[AB]?)\.\w+"
)
"""Names of the annotation files of named data sets."""


def refuse_inputs(target: Path, name: str, root: str | Path | None = None) -> None:
    """Reject a target that is one of the annotation files that a data set, by name or file, is read from.

    Raises:
        InputError: it is.
    """
    inputs = _input_files(name, root)
    for file in (target, *numbered_files(target).values()):
        check_not_input(file, *inputs)


def _input_files(name: str, root: str | Path | None) -> list[Path]:
    if name in DATASETS:
        folder = Path(root) if root else DATASETS[name].default_root()
        if folder is None or not folder.is_dir():
            return []
        levels = (folder, *(child for child in folder.iterdir() if child.is_dir() and child.name != "images"))
        return [file for level in levels for file in level.iterdir() if _ANNOTATIONS.fullmatch(file.name)]
    file = Path(name)
    if is_folder(file):
        return [file, file / "annotations.jsonl", *metadata_files(file)]
    return tar_files(file) if file.suffix.lower() == ".tar" else [file]


def refuse_images(target: Path, images: Iterable[Path]) -> None:
    """Reject a target that is one of some images.

    Raises:
        InputError: it is.
    """
    if is_file(target):
        check_not_input(target, *(image for image in images if image.name == target.name))
