"""From any data set or format to any format that can hold it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from epmvg.data.catalog import open_records
from epmvg.data.formats import KINDS, kind_of, write_file
from epmvg.data.jsonl import Skipped
from epmvg.types import InputError


def convert_data(
    name: str,
    target: Path,
    *,
    kind: str | None = None,
    split: str | None = None,
    root: str | Path | None = None,
    split_key: str = "split",
) -> dict[str, Any]:
    """Read a data set by name or file and write it in another format.

    Args:
        target: the file or folder to write.
        kind: jsonl, coco, odvg, parquet, tar or folder; told from the target's ending by default.
        split, root, split_key: as for `open_records`.

    Returns:
        rows and images written, to (the target), format, root (the folder that image paths there are relative to),
        skipped: reason -> rows that cannot be used.

    Raises:
        InputError: as `open_records`, or the format is not known or cannot hold the rows.
    """
    kind = kind or kind_of(target)
    if kind not in KINDS:
        raise InputError(f"--as {kind} is no format: give one of {', '.join(KINDS)}.")
    skipped = Skipped()
    records = open_records(name, split=split, root=root, split_key=split_key, skipped=skipped)
    common = Path(os.path.commonpath([record.image.absolute().parent for record in records]))
    base = write_file(target, records, Path(root) if root else common, kind)
    return {
        "rows": len(records),
        "images": len({record.image for record in records}),
        "to": str(target),
        "format": kind,
        "root": str(base),
        "skipped": dict(skipped.counts),
    }
