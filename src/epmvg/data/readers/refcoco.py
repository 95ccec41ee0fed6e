"""RefCOCO, RefCOCO+ and RefCOCOg in the layout of lichengunc/refer: refs(*).p beside instances.json, COCO train2014.

Boxes are COCO's: x, y, w, h in pixels from 0, so x + w is the right edge.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from epmvg.core.types import InputError, Sample
from epmvg.data.readers.annotations import Located, parsed, to_samples
from epmvg.data.readers.coco import image_keys
from epmvg.data.readers.fields import Annotation, index_by_id, require
from epmvg.data.readers.files import first_existing, read_json
from epmvg.data.readers.safe_pickle import load_rows

LAYOUT = {
    "refcoco": ("refcoco", "unc", ("train", "val", "trainval", "testA", "testB")),
    "refcoco+": ("refcoco+", "unc", ("train", "val", "trainval", "testA", "testB")),
    "refcocog-umd": ("refcocog", "umd", ("train", "val", "trainval", "test")),
    "refcocog-google": ("refcocog", "google", ("train", "val", "trainval")),
}
"""Name -> the folder, who split it, and the splits."""

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
        InputError: files are missing, truncated or inconsistent.
    """
    folder, by, _ = LAYOUT[name]
    tops = (root, root / "data")
    file = first_existing(tops, (f"{folder}/refs({by}).p", f"{folder}/refs({by}).json"))
    if file is None:
        raise InputError(f"{root} holds no {folder}/refs({by}).p. Give the folder that {folder}.zip of refer lies in.")
    images = first_existing(tops, COCO_FOLDERS) or root / COCO_FOLDERS[0]
    return to_samples(_ref_annotations(file, PARTS.get(split or "", (split,))), images, "split")


def _ref_annotations(file: Path, splits: tuple[str | None, ...]) -> Located[Annotation]:
    """Yield (location, annotation or what is wrong with it) of the sentences of some splits, (None,) for all."""
    instances = file.parent / "instances.json"
    content = read_json(instances)
    found = {
        key: index_by_id(require(content, key, list, str(instances)), compared, f"{instances}, {key}")
        for key, compared in (("images", "file_name"), ("annotations", "bbox"), ("categories", "name"))
    }
    for number, ref in enumerate(load_rows(file)):
        if splits == (None,) or not isinstance(ref, dict) or ref.get("split") in splits:
            location = f"{file}, ref {number}"
            yield from parsed(location, _sentences(ref, found, location))


def _sentences(ref: Any, instances: dict[str, dict[str, Annotation]], location: str) -> Iterator[Annotation]:
    """Yield the annotation of each sentence of a ref."""
    image_id, ann_id, category_id = (require(ref, key, int, location) for key in ("image_id", "ann_id", "category_id"))
    image, annotation = instances["images"].get(str(image_id)), instances["annotations"].get(str(ann_id))
    if image is None or annotation is None:
        raise InputError(
            f"{location}: instances.json has no image {image_id} or no annotation {ann_id}. Download both files again."
        )
    require(image, "file_name", str, f"{location}, image {image_id}")
    stated = image_keys(image, "file_name") | {"bbox": annotation.get("bbox")}
    stated |= {
        "split": require(ref, "split", str, location),
        "ref_id": ref.get("ref_id"),
        "ann_id": ann_id,
        "image_id": image_id,
    }
    stated["category"] = instances["categories"].get(str(category_id), {}).get("name")
    stated["ref"] = str(ref.get("file_name", "")).rpartition(".")[0]
    for sentence in require(ref, "sentences", list, location):
        phrase, sent_id = require(sentence, "sent", str, location), require(sentence, "sent_id", int, location)
        raw = sentence.get("raw")
        own = {"raw": raw} if isinstance(raw, str) and raw != phrase else {}
        yield stated | {"phrase": phrase, "id": str(sent_id), "sent_id": sent_id} | own
