"""ReferItGame (RefCLEF) from the Berkeley metadata of text_objseg: referit_bbox.json and the files beside it.

Boxes there are [xmin, ymin, xmax, ymax], from 0, the last pixel included; a sample's box ends one past it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epmvg.core.types import InputError, Sample
from epmvg.data.readers.annotations import Located, parsed
from epmvg.data.readers.fields import require, require_box, short_repr, size_of
from epmvg.data.readers.files import first_existing, read_json
from epmvg.data.readers.image_finder import ImageFinder

FOLDERS = (".", "referit", "data", "data/referit", "referitgame", "exp-referit/data")
IMAGE_FOLDERS = ("referit/images", "ln_data/referit/images", "exp-referit/referit-dataset/images", "images")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class _Metadata:
    boxes: dict[str, Any]  # by region
    sizes: dict[str, Any]  # by image
    find: ImageFinder


def read_referit(root: Path, split: str | None) -> Located[Sample]:
    """Read ReferItGame, one sample per phrase; `id` is the region's and the phrase's number in it.

    Args:
        root: holds referit_bbox.json, referit_imsize.json and referit_query_SPLIT.json, itself or in one of `FOLDERS`.
        split: train, val, test or trainval (a file of its own); None reads train, val and test.

    Raises:
        InputError: files are missing, torn or do not fit together.
    """
    boxes = first_existing([root / folder for folder in FOLDERS], ("referit_bbox.json",))
    if boxes is None:
        raise InputError(f"{root} holds no referit_bbox.json: give the folder of the ReferIt metadata (text_objseg).")
    folder = boxes.parent
    images = first_existing((folder, root), IMAGE_FOLDERS) or folder / IMAGE_FOLDERS[-1]
    metadata = _Metadata(_read_object(boxes), _read_object(folder / "referit_imsize.json"), ImageFinder(images))
    for part in (split,) if split else SPLITS:
        file = folder / f"referit_query_{part}.json"
        queries = _read_object(file)
        for region in queries:
            where = f"{file}, region {short_repr(region)}"
            yield from parsed(where, _region_samples(region, queries, part, metadata, where))


def _region_samples(
    region: str, queries: dict[str, Any], split: str, metadata: _Metadata, where: str
) -> Iterator[Sample]:
    xmin, ymin, xmax, ymax = require_box(metadata.boxes, region, where)
    name = f"{region.partition('_')[0]}.jpg"
    stated = metadata.sizes.get(name)
    size = size_of(stated[0], stated[1], where) if isinstance(stated, list) and len(stated) == 2 else None
    for number, phrase in enumerate(require(queries, region, list, where)):
        if not isinstance(phrase, str):
            raise InputError(f"{where}: {short_repr(phrase)} is not a phrase; download the metadata again.")
        image, box = metadata.find(name, where), (xmin, ymin, xmax + 1, ymax + 1)
        yield Sample(image, phrase, box, split, f"{region}/{number}", size, {"region": region})


def _read_object(file: Path) -> dict[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict):
        raise InputError(f"{file} is not a JSON object: download the metadata again.")
    return content
