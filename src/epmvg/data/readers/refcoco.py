"""RefCOCO, RefCOCO+ and RefCOCOg in the layout of lichengunc/refer: refs(*).p beside instances.json, COCO train2014.

Boxes are COCO's: x, y, w, h in pixels from 0, so x + w is the right edge.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from epmvg.core.types import InputError, Sample
from epmvg.data.readers.annotations import Located, parsed
from epmvg.data.readers.coco import image_keys
from epmvg.data.readers.fields import Annotation, require, require_box, short_repr, size_of
from epmvg.data.readers.files import first_existing, read_json
from epmvg.data.readers.image_finder import ImageFinder
from epmvg.data.readers.safe_pickle import load_pickle

LAYOUT = {
    "refcoco": ("refcoco", "unc"),
    "refcoco+": ("refcoco+", "unc"),
    "refcocog-umd": ("refcocog", "umd"),
    "refcocog-google": ("refcocog", "google"),
}
"""Name -> the folder, and who split it."""

PARTS = {"trainval": ("train", "val")}
"""Splits that are made of others."""

COCO_FOLDERS = (
    *("images/mscoco/images/train2014", "other/images/mscoco/images/train2014", "mscoco/images/train2014"),
    *("images/train2014", "train2014", "coco/train2014", "images/train2017", "train2017", "coco/train2017", "images"),
)
"""Where COCO train2014 (or train2017, which holds most of the same images) may lie below a root; the first is refer's
own place, the second TransVG's."""


def read_refcoco(root: Path, split: str | None, *, name: str) -> Located[Sample]:
    """Read a set of the RefCOCO family, one sample per sentence.

    Args:
        root: holds refcoco/, refcoco+/ or refcocog/, itself or in data/; images in one of `COCO_FOLDERS`.
        split: train, val, testA, testB or test; trainval is train and val, None all.
        name: of `LAYOUT`.

    Raises:
        InputError: files are missing, torn or do not fit together.
    """
    folder, by = LAYOUT[name]
    tops = (root, root / "data")
    file = first_existing(tops, (f"{folder}/refs({by}).p", f"{folder}/refs({by}).json"))
    if file is None:
        raise InputError(f"{root} holds no {folder}/refs({by}).p: give the folder that {folder}.zip of refer lies in.")
    instances = _Instances(file.parent / "instances.json", first_existing(tops, COCO_FOLDERS) or root / COCO_FOLDERS[0])
    refs = load_pickle(file) if file.suffix == ".p" else read_json(file)
    if not isinstance(refs, list):
        raise InputError(f"{file} holds {short_repr(refs)} instead of a list of refs: download the file again.")
    splits = PARTS.get(split or "", (split,))
    for number, ref in enumerate(refs):
        if split is None or not isinstance(ref, dict) or ref.get("split") in splits:
            where = f"{file}, ref {number}"
            yield from parsed(where, _ref_samples(ref, instances, where))


class _Instances:
    """Images, annotations and categories of instances.json by their ids."""

    def __init__(self, file: Path, images: Path) -> None:
        content = read_json(file)
        self.file, self.find = file, ImageFinder(images)
        self.images = _by_id(content, "images", "file_name", file)
        self.annotations = _by_id(content, "annotations", "bbox", file)
        self.categories = _by_id(content, "categories", "name", file)


def _by_id(content: Any, key: str, what: str, file: Path) -> dict[int, Annotation]:
    """Return the entries of a list of instances.json by their ids, without those that have none.

    Raises:
        InputError: there is no such list, or two of its entries with one id differ in `what`.
    """
    found: dict[int, Annotation] = {}
    for entry in require(content, key, list, str(file)):
        if isinstance(entry, dict) and isinstance(entry.get("id"), int):
            before = found.setdefault(entry["id"], entry)
            if before.get(what) != entry.get(what):
                raise InputError(f"{file} gives two of its {key} the id {entry['id']}: download the file again.")
    return found


def _ref_samples(ref: Any, instances: _Instances, where: str) -> Iterator[Sample]:
    split = require(ref, "split", str, where)
    image_id, ann_id, category_id = (require(ref, key, int, where) for key in ("image_id", "ann_id", "category_id"))
    image, annotation = instances.images.get(image_id), instances.annotations.get(ann_id)
    if image is None or annotation is None:
        raise InputError(
            f"{where}: {instances.file} has no image {image_id} or no annotation {ann_id}; download both files again."
        )
    at = f"{instances.file}, image {image_id}"
    path, size = instances.find(image.get("file_name"), at), size_of(image.get("width"), image.get("height"), at)
    x, y, w, h = require_box(annotation, "bbox", f"{instances.file}, annotation {ann_id}")
    known = {"ref_id": ref.get("ref_id"), "ann_id": ann_id, "image_id": image_id}
    known |= {"category": instances.categories.get(category_id, {}).get("name")}
    known |= {"ref": str(ref.get("file_name", "")).rpartition(".")[0]}
    for sentence in require(ref, "sentences", list, where):
        phrase = require(sentence, "sent", str, where)
        raw = sentence.get("raw")
        extra = known | ({"raw": raw} if isinstance(raw, str) and raw != phrase else {})
        extra["sent_id"] = require(sentence, "sent_id", int, where)
        yield Sample(path, phrase, (x, y, x + w, y + h), split, str(extra["sent_id"]), size, extra)


def sentence_annotation(line: Any, where: str, file: Path) -> Iterator[Annotation]:
    """Yield the annotation of an entry in MiniGPT-4's lists of sentences of the RefCOCO family.

    An entry is {"img_id": COCO file name and annotation, "sents", "bbox"}; refcoco_val.json is of split val.
    """
    if not isinstance(line, dict) or "img_id" not in line:
        raise InputError(f'{where} has neither "image" nor "img_id": see docs/data.md for the lists that are read.')
    ref = require(line, "img_id", str, where)
    split = file.stem.rpartition("_")[2]
    named = {"split": split} if split in ("train", "val", "test", "testA", "testB") else {}
    own = {"phrase": require(line, "sents", str, where), "bbox": line.get("bbox"), "ref": ref}
    yield named | image_keys({**line, "image": ref.rpartition("_")[0] + ".jpg"}, "image") | own
