"""ReferItGame (RefCLEF) from the Berkeley metadata of text_objseg: referit_bbox.json and the files beside it.

Boxes there are [xmin, ymin, xmax, ymax], from 0, the last pixel included; a sample's box ends one past it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from epmvg.core.types import InputError, Sample
from epmvg.data.readers.annotations import Located, parsed, to_samples
from epmvg.data.readers.fields import Annotation, require, require_box, short_repr, to_xywh
from epmvg.data.readers.files import first_existing, read_json

FOLDERS = (".", "referit", "data", "data/referit", "referitgame", "exp-referit/data")
IMAGE_FOLDERS = ("referit/images", "ln_data/referit/images", "exp-referit/referit-dataset/images", "images")
SPLITS = ("train", "val", "test")


def read_referit(root: Path, split: str | None) -> Located[Sample]:
    """Read ReferItGame, one sample per phrase; `id` is the region's and the phrase's number in it.

    Args:
        root: holds referit_bbox.json, referit_imsize.json and referit_query_SPLIT.json, itself or in one of `FOLDERS`.
        split: train, val, test or trainval (a file of its own); None reads train, val and test.

    Raises:
        InputError: files are missing, truncated or inconsistent.
    """
    boxes = first_existing([root / folder for folder in FOLDERS], ("referit_bbox.json",))
    if boxes is None:
        raise InputError(f"{root} holds no referit_bbox.json. Give the folder of the ReferIt metadata (text_objseg).")
    folder = boxes.parent
    images = first_existing((folder, root), IMAGE_FOLDERS) or folder / IMAGE_FOLDERS[-1]
    return to_samples(_region_annotations(folder, (split,) if split else SPLITS), images, "split")


def _region_annotations(folder: Path, splits: tuple[str, ...]) -> Located[Annotation]:
    boxes, sizes = _read_object(folder / "referit_bbox.json"), _read_object(folder / "referit_imsize.json")
    for split in splits:
        file = folder / f"referit_query_{split}.json"
        queries = _read_object(file)
        for region in queries:
            location = f"{file}, region {short_repr(region)}"
            stated = {"image": f"{region.partition('_')[0]}.jpg", "split": split, "region": region}
            yield from parsed(location, _phrase_annotations(stated, queries, boxes, sizes, location))


def _phrase_annotations(
    stated: Annotation, queries: dict[str, Any], boxes: dict[str, Any], sizes: dict[str, Any], location: str
) -> Iterator[Annotation]:
    """Yield the annotation of each phrase of a region."""
    xmin, ymin, xmax, ymax = require_box(boxes, stated["region"], location)
    size = sizes.get(stated["image"])
    if isinstance(size, list) and len(size) == 2:
        stated |= {"width": size[0], "height": size[1]}
    stated["bbox"] = to_xywh((xmin, ymin, xmax + 1, ymax + 1))
    for number, phrase in enumerate(require(queries, stated["region"], list, location)):
        yield stated | {"phrase": phrase, "id": f"{stated['region']}/{number}"}


def _read_object(file: Path) -> dict[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict):
        raise InputError(f"{file} is not a JSON object. Download the metadata again.")
    return content
