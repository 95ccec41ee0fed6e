"""Index files of TransVG and ReSC: FLAG/FLAG_SPLIT.pth, lists of (image, mask, box, phrase, attributes) or flickr's
(image, box, phrase), saved with torch.save.

Their boxes differ by flag: the COCO family has x, y, w, h from 0; referit corners from 0 and flickr corners from 1, the
last pixel included. TransVG truncates each number to an integer before use; here they are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from epmvg.core.types import InputError, Sample
from epmvg.data.readers.annotations import Located, parsed, to_samples
from epmvg.data.readers.fields import Annotation, picked, require_box, short_repr, to_xywh
from epmvg.data.readers.files import first_existing
from epmvg.data.readers.refcoco import COCO_FOLDERS, PARTS
from epmvg.data.readers.referit import IMAGE_FOLDERS as REFERIT_FOLDERS
from epmvg.data.readers.safe_pickle import load_rows

FLAGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "unc": ("RefCOCO", ("train", "val", "trainval", "testA", "testB")),
    "unc+": ("RefCOCO+", ("train", "val", "trainval", "testA", "testB")),
    "gref": ("RefCOCOg (Google)", ("train", "val", "trainval")),
    "gref_umd": ("RefCOCOg (UMD)", ("train", "val", "trainval", "test")),
    "referit": ("ReferItGame", ("train", "val", "trainval", "test")),
    "flickr": ("Flickr30k Entities", ("train", "val", "test")),
}
"""TransVG's names of the sets -> what they are, and the splits that its index files come in."""

_ENDINGS = (".pth", ".pkl", ".json")
_IMAGE_FOLDERS = {"referit": REFERIT_FOLDERS, "flickr": ("Flickr30k/flickr30k_images", "flickr30k_images")}


def read_transvg(root: Path, split: str | None, *, flag: str) -> Located[Sample]:
    """Read the index files of one of TransVG's flags, one sample per phrase.

    Args:
        root: holds FLAG/FLAG_SPLIT.pth, itself or in data/, and images as TransVG has them, itself or in ln_data/.
        split: of the flag's; trainval is train and val, but referit's a file of its own; None reads all the others.
        flag: of `FLAGS`.

    Raises:
        InputError: files are missing, truncated or not plain data.
    """
    parts = (split,) if split else tuple(part for part in FLAGS[flag][1] if part != "trainval")
    if flag != "referit":
        parts = tuple(half for part in parts for half in PARTS.get(part, (part,)))
    folders = [root / flag, root / "data" / flag]
    found = {part: first_existing(folders, [f"{flag}_{part}{ending}" for ending in _ENDINGS]) for part in parts}
    if not any(found.values()) or (split and not all(found.values())):
        file_name = f"{flag}/{flag}_{split or parts[0]}.pth"
        raise InputError(f"{root} holds no {file_name}. Give the folder that {flag}/ lies in.")
    names = _IMAGE_FOLDERS.get(flag, (COCO_FOLDERS[1], *COCO_FOLDERS))
    images = first_existing((root, root / "ln_data"), names) or root / names[0]
    for part, file in found.items():
        if file is not None:
            yield from to_samples(_row_annotations(file, flag, part), images, "split")


def _row_annotations(file: Path, flag: str, split: str) -> Located[Annotation]:
    for number, row in enumerate(load_rows(file)):
        location = f"{file}, row {number}"
        yield from parsed(location, _row_annotation(row, location, flag, split, number))


def _row_annotation(row: Any, location: str, flag: str, split: str, number: int) -> Iterator[Annotation]:
    keys = ("image", "bbox", "phrase") if flag == "flickr" else ("image", "mask", "bbox", "phrase", "attributes")
    if not isinstance(row, list | tuple) or len(row) != len(keys):
        raise InputError(f"{location}: a row of {flag} has {len(keys)} fields, not {short_repr(row)}. Fix the file.")
    stated = dict(zip(keys, row, strict=True)) | {"split": split, "id": f"{flag}_{split}/{number}"}
    a, b, c, d = require_box(stated, "bbox", location)
    if flag == "referit":
        stated["bbox"] = to_xywh((a, b, c + 1, d + 1))
    elif flag == "flickr":
        stated["bbox"] = to_xywh((a - 1, b - 1, c, d))
    mask = {"mask": stated["mask"]} if isinstance(stated.get("mask"), str) else {}
    yield picked(stated, "image", "phrase", "bbox", "split", "id") | mask
