"""From any data set or format to any format that can hold it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from epmvg.core.files import check_not_input
from epmvg.core.types import Sample
from epmvg.data.readers.annotations import Skipped
from epmvg.data.readers.files import is_folder
from epmvg.data.readers.formats import format_of, write_file
from epmvg.data.readers.hugging_face import metadata_files
from epmvg.data.readers.webdataset import tar_files
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
        target: the file to write; its ending means the format.
        split, root, split_key: as for `open_samples`.

    Returns:
        samples and images written, to (the target), format, root (the folder that image paths there are relative to),
        and `Skipped.as_dict`.

    Raises:
        InputError: as `open_samples`, or the format cannot hold the samples, or the target is one of the files that
            are read.
    """
    format_ = format_of(target)
    reject_inputs(target, name, root)
    skipped = Skipped()
    samples = open_samples(name, split=split, root=root, split_key=split_key, skipped=skipped)
    base = write_samples(target, samples, root)
    return {
        "samples": len(samples),
        "images": len({sample.image for sample in samples}),
        "to": str(target),
        "format": format_,
        "root": str(base),
    } | skipped.as_dict()


def write_samples(target: Path, samples: list[Sample], root: str | Path | None) -> Path:
    """Write samples that were read from a data set, and return the folder that image paths are relative to.

    Args:
        root: the folder their images lie in; by default the folder that these have in common.

    Raises:
        InputError: the target is one of the images, or as `write_file`.
    """
    images = {sample.image for sample in samples}
    check_not_input(target, *(image for image in images if image.name == target.name))
    common = Path(os.path.commonpath([image.absolute().parent for image in images]))
    return write_file(target, samples, Path(root) if root else common)


def reject_inputs(target: Path, name: str, root: str | Path | None = None) -> None:
    """Reject a target that is a file that a data set is read from, or any file in the folder of a named one."""
    file = Path(name)
    if name in DATASETS:
        folder = Path(root) if root else DATASETS[name].default_root()
        is_inside = folder is not None and target.resolve().is_relative_to(folder.resolve())
        check_not_input(target, target if is_inside and target.exists() else None)
    elif is_folder(file):
        check_not_input(target, file, file / "annotations.jsonl", *metadata_files(file))
    else:
        check_not_input(target, *(tar_files(file) if file.suffix.lower() == ".tar" else [file]))
