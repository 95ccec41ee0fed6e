"""Index files of TransVG and ReSC: FLAG/FLAG_SPLIT.pth, lists of (image, mask, box, phrase, attributes) or flickr's
(image, box, phrase), saved with torch.save.

Their boxes differ by flag: the COCO family has x, y, w, h from 0; referit corners from 0 and flickr corners from 1, the
last pixel included. TransVG cuts each number to a whole one before use; here they stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from epmvg.core.types import Box, InputError, Sample
from epmvg.data.readers.files import first_there, four_numbers, read_json, shown
from epmvg.data.readers.finder import ImageFinder
from epmvg.data.readers.jsonl import Skipped, each, refuse_empty, usable
from epmvg.data.readers.refcoco import COCO_PHOTOS, PARTS
from epmvg.data.readers.referit import PHOTOS as REFERIT_PHOTOS
from epmvg.data.readers.safe_pickle import load_pickle

FLAGS: dict[str, tuple[str, ...]] = {
    "unc": ("train", "val", "trainval", "testA", "testB"),
    "unc+": ("train", "val", "trainval", "testA", "testB"),
    "gref": ("train", "val", "trainval"),
    "gref_umd": ("train", "val", "trainval", "test"),
    "referit": ("train", "val", "trainval", "test"),
    "flickr": ("train", "val", "test"),
}
"""TransVG's names of the sets, and the splits that its index files come in."""

_ENDINGS = (".pth", ".pkl", ".json")
_PHOTOS = {"referit": REFERIT_PHOTOS, "flickr": ("Flickr30k/flickr30k_images", "flickr30k_images")}
_COCO_PHOTOS = (COCO_PHOTOS[1], *COCO_PHOTOS)


def read_transvg(
    root: Path | str,
    flag: str,
    *,
    folder: Path | str | None = None,
    split: str | None = None,
    skipped: Skipped | None = None,
) -> list[Sample]:
    """Read the index files of one of TransVG's flags, one record a phrase.

    Args:
        root: holds FLAG/FLAG_SPLIT.pth, itself or in data/, and photos as TransVG lays them, itself or in ln_data/.
        flag: of `FLAGS`.
        folder: where the index files are, if not there.
        split: of the flag's; trainval is train and val, but referit's a file of its own; None reads all the rest.
        skipped: counts rows that cannot be used, which otherwise raise.

    Raises:
        InputError: files are missing, torn or refused.
    """
    root = Path(root)
    parts = (split,) if split else tuple(part for part in FLAGS[flag] if part != "trainval")
    if flag != "referit":
        parts = tuple(half for part in parts for half in PARTS.get(part, (part,)))
    folders = [Path(folder)] if folder else [root / flag, root / "data" / flag]
    files = {part: first_there(folders, [f"{flag}_{part}{ending}" for ending in _ENDINGS]) for part in parts}
    found = {part: file for part, file in files.items() if file is not None}
    if not found or (split and len(found) < len(parts)):
        raise InputError(
            f"{folder or root} holds no {flag}/{flag}_{split or parts[0]}.pth: give the folder that {flag}/ lies in."
        )
    records: list[Sample] = []
    for part, file in found.items():
        records += read_transvg_file(file, root=root, flag=flag, split=part, skipped=skipped)
    return records


def read_transvg_file(
    file: Path | str,
    *,
    root: Path | str | None = None,
    flag: str | None = None,
    split: str | None = None,
    skipped: Skipped | None = None,
) -> list[Sample]:
    """Read one index file; flag and split are told from a name such as gref_umd_val.pth, the root from its place.

    Raises:
        InputError: the name tells no flag, or as `read_transvg`.
    """
    file = Path(file)
    named_flag, _, named_split = file.stem.rpartition("_")
    flag, split = flag or named_flag, split or named_split
    if flag not in FLAGS or split != named_split:
        wanted = f"{split} of {flag}" if flag in FLAGS else f"any of {', '.join(FLAGS)}"
        raise InputError(f"{file} is not an index of {wanted} by its name: call it FLAG_SPLIT.pth, as TransVG does.")
    tops = [Path(root)] if root else [file.parent.parent, file.parent.parent.parent]
    names = _PHOTOS.get(flag, _COCO_PHOTOS)
    photos = first_there([place for top in tops for place in (top, top / "ln_data")], names) or tops[0] / names[0]
    rows = read_json(file) if file.suffix.lower() == ".json" else load_pickle(file)
    if not isinstance(rows, list):
        raise InputError(f"{file} holds {shown(rows)} instead of a list of rows: fetch the file anew.")
    records = usable(_records(rows, file, flag, split, ImageFinder(photos)), skipped)
    refuse_empty(records, f"{file} has no usable rows: fetch the file anew.", skipped)
    return records


def _records(
    rows: list[Any], file: Path, flag: str, split: str, find: ImageFinder
) -> Iterator[tuple[str, Sample | InputError]]:
    for number, row in enumerate(rows):
        where = f"{file}, row {number}"
        yield from each(where, _row_records(row, where, flag, split, number, find))


def _row_records(row: Any, where: str, flag: str, split: str, number: int, find: ImageFinder) -> Iterator[Sample]:
    fields = 3 if flag == "flickr" else 5
    if not isinstance(row, list | tuple) or len(row) != fields:
        raise InputError(f"{where} is {shown(row)}, a row of {flag} has {fields} fields; fetch the file anew.")
    name, stated, phrase = row if flag == "flickr" else (row[0], row[2], row[3])
    numbers = four_numbers(stated)
    if numbers is None or not isinstance(phrase, str):
        raise InputError(f"{where} has no box of four numbers or no phrase: fetch the file anew.")
    record_id = f"{flag}_{split}/{number}"
    extra = {} if flag == "flickr" else {"mask": row[1]} if isinstance(row[1], str) else {}
    yield Sample(find(name, where), phrase, _box(flag, numbers), split, record_id, None, extra)


def _box(flag: str, numbers: Box) -> Box:
    a, b, c, d = numbers
    if flag == "referit":
        return a, b, c + 1, d + 1
    if flag == "flickr":
        return a - 1, b - 1, c, d
    return a, b, a + c, b + d
