"""Files and folders of rows, told by their ending and first words: one reader and one writer for all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from epmvg.core.files import atomic_write
from epmvg.core.types import InputError, Sample
from epmvg.data.readers.coco import coco_of, json_rows, odvg_of
from epmvg.data.readers.files import is_folder
from epmvg.data.readers.imagefolder import folder_rows, metadata_files, write_folder
from epmvg.data.readers.jsonl import Row, Skipped, json_line, read_jsonl, read_rows, rows_of, write_jsonl
from epmvg.data.readers.parquet import parquet_rows, write_parquet
from epmvg.data.readers.transvg import FLAGS, read_transvg, read_transvg_file
from epmvg.data.readers.webdataset import write_webdataset

KINDS = {
    "jsonl": ".jsonl",
    "coco": ".json",
    "odvg": ".odvg.jsonl",
    "parquet": ".parquet",
    "tar": ".tar",
    "folder": "",
}
"""What can be written, and the ending that means it."""

READABLE = (".jsonl", ".json", ".parquet", ".tar", ".pth", ".pkl")


def read_file(
    file: Path,
    *,
    split: str | None = None,
    root: Path | str | None = None,
    split_key: str = "split",
    skipped: Skipped | None = None,
) -> list[Sample]:
    """Read the records of a file or folder in any of the formats of docs/data.md but tar.

    Args:
        root: what image paths are relative to and stay in; by default the file's folder.

    Raises:
        InputError: the format is not known, or as `read_jsonl`.
    """
    if file.suffix.lower() in (".pth", ".pkl"):
        return read_transvg_file(file, root=root, split=split, skipped=skipped)
    if is_folder(file) and not metadata_files(file):
        return _read_named_folder(file, split, root, split_key, skipped)
    folder = Path(root) if root else file if is_folder(file) else file.parent
    return read_rows(_rows(file), folder, str(file), split=split, split_key=split_key, skipped=skipped)


def write_file(target: Path, records: Sequence[Sample], root: Path, kind: str | None = None) -> Path:
    """Write records in a format and return the folder that its image paths are relative to.

    Args:
        root: the folder the images of the records lie in; paths are relative to the target's own folder where all of
            them lie in it.
        kind: of `KINDS`; told from the ending of the target by default.

    Raises:
        InputError: the ending means no format, or the format cannot hold the records.
    """
    kind = kind or kind_of(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        target.mkdir(exist_ok=True)
        write_folder(target, rows_of(records, root), root)
        return target
    if kind == "tar":
        write_webdataset(target, rows_of(records, root), root)
        return target.parent
    own = target.parent
    base = root if any(Path(row["image"]).is_absolute() for row in rows_of(records, own)) else own
    if kind == "jsonl":
        write_jsonl(target, records, root=base)
    elif kind == "parquet":
        write_parquet(target, rows_of(records, base))
    else:
        with atomic_write(target) as temporary, temporary.open("wb") as out:
            if kind == "odvg":
                out.writelines(json_line(row) for row in odvg_of(rows_of(records, base)))
            else:
                out.write(json.dumps(coco_of(rows_of(records, base))).encode())
    return base


def kind_of(target: Path) -> str:
    """Return the format that a name's ending means.

    Raises:
        InputError: none.
    """
    for kind in ("odvg", "jsonl", "coco", "parquet", "tar"):
        if target.name.lower().endswith(KINDS[kind]):
            return kind
    if not target.suffix:
        return "folder"
    raise InputError(
        f"{target} means no format: end it in .jsonl, .json, .odvg.jsonl, .parquet or .tar, or name a folder."
    )


def _rows(file: Path) -> Iterator[tuple[str, Row | InputError]]:
    if is_folder(file):
        return folder_rows(file)
    if file.suffix.lower() == ".parquet":
        return parquet_rows(file)
    if file.suffix.lower() in (".json", ".jsonl"):
        return json_rows(file)
    raise InputError(f"{file} is of no known format: it must end in {', '.join(READABLE)} or be a folder.")


def _read_named_folder(
    folder: Path, split: str | None, root: Path | str | None, split_key: str, skipped: Skipped | None
) -> list[Sample]:
    if (folder / "annotations.jsonl").is_file():
        return read_jsonl(folder / "annotations.jsonl", split=split, root=root, split_key=split_key, skipped=skipped)
    if folder.name in FLAGS:
        top = Path(root) if root else folder.parent
        return read_transvg(top, folder.name, folder=folder, split=split, skipped=skipped)
    lying = [
        file
        for level in ("", "*/")
        for ending in ("json", "jsonl", "parquet")
        for file in folder.glob(f"{level}*.{ending}")
    ]
    tables = [file for level in ("", "*/") for file in folder.glob(f"{level}metadata.csv")]
    there = f"name {min(lying)} itself" if lying else f"write {min(tables)} as metadata.jsonl" if tables else ""
    raise InputError(
        f"{folder} holds no metadata.jsonl (there or up to two folders down), annotations.jsonl or TransVG index:"
        f" {there or 'name a file or a data set of `epmvg list datasets`'}."
    )
