"""RefCOCO, RefCOCO+ and RefCOCOg in the layout of lichengunc/refer: refs(*).p beside instances.json, COCO train2014.

Boxes are COCO's: x, y, w, h in pixels from 0, so x + w is the right edge.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from epmvg.core.types import Box, InputError, Sample
from epmvg.data.readers.files import first_there, four_numbers, need, read_json, shown, size_of
from epmvg.data.readers.finder import ImageFinder
from epmvg.data.readers.jsonl import Skipped, each, refuse_empty, usable
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

COCO_PHOTOS = (
    *("images/mscoco/images/train2014", "other/images/mscoco/images/train2014", "mscoco/images/train2014"),
    *("images/train2014", "train2014", "coco/train2014", "images/train2017", "train2017", "coco/train2017", "images"),
)
"""Where people keep COCO train2014 (or train2017, which holds most of the same photos) below a root; the first is
refer's own place, the second TransVG's."""


def read_refcoco(
    root: Path | str, name: str = "refcoco", *, split: str | None = None, skipped: Skipped | None = None
) -> list[Sample]:
    """Read a set of the RefCOCO family, one record a sentence.

    Args:
        root: holds refcoco/, refcoco+/ or refcocog/, itself or in data/; photos in one of `COCO_PHOTOS`.
        name: of `LAYOUT`.
        split: train, val, testA, testB or test; trainval is train and val, None all.
        skipped: counts rows that cannot be used, which otherwise raise.

    Raises:
        InputError: files are missing, torn or do not fit together.
    """
    root = Path(root)
    folder, by = LAYOUT[name]
    tops = (root, root / "data")
    refs = first_there(tops, (f"{folder}/refs({by}).p", f"{folder}/refs({by}).json"))
    if refs is None:
        raise InputError(f"{root} holds no {folder}/refs({by}).p: give the folder that {folder}.zip of refer lies in.")
    instances = refs.parent / "instances.json"
    photos = first_there(tops, COCO_PHOTOS) or root / COCO_PHOTOS[0]
    source = _Instances(read_json(instances), instances, photos)
    rows = load_pickle(refs) if refs.suffix == ".p" else read_json(refs)
    if not isinstance(rows, list):
        raise InputError(f"{refs} holds {shown(rows)} instead of a list of refs: fetch the file anew.")
    records = usable(_records(rows, source, refs, PARTS.get(split or "", (split,))), skipped)
    refuse_empty(records, f"{refs} has no rows of split {split!r}: fetch the file anew.", skipped)
    return records


class _Instances:
    """instances.json, looked up by id."""

    def __init__(self, content: Any, file: Path, photos: Path) -> None:
        self.file = file
        self.find = ImageFinder(photos)
        self.images = _by_id(content, "images", "file_name", file)
        self.annotations = _by_id(content, "annotations", "bbox", file)
        self.categories = _by_id(content, "categories", "name", file)

    def image(self, number: int) -> tuple[Path, tuple[int, int] | None]:
        row, where = self.images[number], f"{self.file}, image {number}"
        name = need(row, "file_name", str, where)
        return self.find(name, where), size_of(row.get("width"), row.get("height"), where)

    def box(self, number: int) -> Box:
        found = four_numbers(self.annotations[number].get("bbox"))
        if found is None:
            raise InputError(f'{self.file}, annotation {number}: "bbox" must be four numbers; fetch the file anew.')
        x, y, w, h = found
        return x, y, x + w, y + h


def _by_id(content: Any, key: str, what: str, file: Path) -> dict[int, dict[str, Any]]:
    """Return the rows of a list of instances.json by their ids, without rows that have none.

    Raises:
        InputError: there is no such list, or two of its rows with one id differ in `what`.
    """
    found: dict[int, dict[str, Any]] = {}
    for row in need(content, key, list, str(file)):
        number = row.get("id") if isinstance(row, dict) else None
        if not isinstance(number, int):
            continue
        before = found.setdefault(number, row)
        if before is not row and before.get(what) != row.get(what):
            raise InputError(f"{file} gives two of its {key} the id {number}: fetch the file anew.")
    return found


def _records(
    rows: list[Any], source: _Instances, file: Path, splits: tuple[str | None, ...]
) -> Iterator[tuple[str, Sample | InputError]]:
    for number, ref in enumerate(rows):
        where = f"{file}, ref {number}"
        if splits == (None,) or not isinstance(ref, dict) or ref.get("split") in splits:
            yield from each(where, _ref_records(ref, source, where))


def _ref_records(ref: Any, source: _Instances, where: str) -> Iterator[Sample]:
    split = need(ref, "split", str, where)
    image_id, ann_id = need(ref, "image_id", int, where), need(ref, "ann_id", int, where)
    if image_id not in source.images or ann_id not in source.annotations:
        raise InputError(f"{where}: {source.file} has no image {image_id} or no annotation {ann_id}; fetch both anew.")
    image, size = source.image(image_id)
    box = source.box(ann_id)
    known = {"ref_id": ref.get("ref_id"), "ann_id": ann_id, "image_id": image_id}
    category = source.categories.get(need(ref, "category_id", int, where), {}).get("name")
    for sentence in need(ref, "sentences", list, where):
        text = need(sentence, "sent", str, where)
        extra = known | {"category": category, "ref": str(ref.get("file_name", "")).rpartition(".")[0]}
        if isinstance(sentence.get("raw"), str) and sentence["raw"] != text:
            extra["raw"] = sentence["raw"]
        extra["sent_id"] = need(sentence, "sent_id", int, where)
        yield Sample(image, text, box, split, str(extra["sent_id"]), size, extra)
