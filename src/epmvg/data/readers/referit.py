"""ReferItGame (RefCLEF) from the Berkeley metadata of text_objseg: referit_bbox.json and its sisters.

Boxes there are [xmin, ymin, xmax, ymax], from 0, the last pixel included; ours end one past it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from epmvg.core.types import InputError, Sample
from epmvg.data.readers.files import first_there, four_numbers, read_json, shown, size_of
from epmvg.data.readers.finder import ImageFinder
from epmvg.data.readers.jsonl import Skipped, each, refuse_empty, usable

FOLDERS = (".", "referit", "data", "data/referit", "referitgame", "exp-referit/data")
PHOTOS = ("referit/images", "ln_data/referit/images", "exp-referit/referit-dataset/images", "images")
SPLITS = ("train", "val", "test")


def read_referit(root: Path | str, *, split: str | None = None, skipped: Skipped | None = None) -> list[Sample]:
    """Read ReferItGame, one record a phrase; `id` is the region's and the phrase's number in it.

    Args:
        root: holds referit_bbox.json, referit_imsize.json and referit_query_SPLIT.json, itself or in one of `FOLDERS`.
        split: train, val, test or trainval (a file of its own); None reads train, val and test.
        skipped: counts rows that cannot be used, which otherwise raise.

    Raises:
        InputError: files are missing, torn or do not fit together.
    """
    root = Path(root)
    boxes_file = first_there([root / folder for folder in FOLDERS], ("referit_bbox.json",))
    if boxes_file is None:
        raise InputError(f"{root} holds no referit_bbox.json: give the folder of the ReferIt metadata (text_objseg).")
    folder = boxes_file.parent
    boxes, sizes = _object(boxes_file), _object(folder / "referit_imsize.json")
    photos = first_there((folder, root), PHOTOS) or folder / PHOTOS[-1]
    find = ImageFinder(photos)
    records: list[Sample] = []
    for part in (split,) if split else SPLITS:
        queries = folder / f"referit_query_{part}.json"
        records += usable(_records(_object(queries), queries, part, boxes, sizes, find), skipped)
    refuse_empty(records, f"{folder} has no phrases: fetch the metadata anew.", skipped)
    return records


def _records(
    queries: dict[str, Any], file: Path, split: str, boxes: dict[str, Any], sizes: dict[str, Any], find: ImageFinder
) -> Iterator[tuple[str, Sample | InputError]]:
    for region, phrases in queries.items():
        where = f"{file}, region {shown(region)}"
        yield from each(where, _region_records(region, phrases, where, split, boxes, sizes, find))


def _region_records(
    region: str,
    phrases: Any,
    where: str,
    split: str,
    boxes: dict[str, Any],
    sizes: dict[str, Any],
    find: ImageFinder,
) -> Iterator[Sample]:
    corners = four_numbers(boxes.get(region))
    if corners is None or not isinstance(phrases, list):
        raise InputError(f"{where} has no box of four numbers or no list of phrases: fetch the metadata anew.")
    xmin, ymin, xmax, ymax = corners
    name = f"{region.partition('_')[0]}.jpg"
    stated = sizes.get(name)
    size = size_of(stated[0], stated[1], where) if isinstance(stated, list) and len(stated) == 2 else None
    for number, phrase in enumerate(phrases):
        if not isinstance(phrase, str):
            raise InputError(f"{where}: {shown(phrase)} is not a phrase; fetch the metadata anew.")
        box = (xmin, ymin, xmax + 1, ymax + 1)
        yield Sample(find(name, where), phrase, box, split, f"{region}/{number}", size, {"region": region})


def _object(file: Path) -> dict[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict):
        raise InputError(f"{file} is not a JSON object: fetch the metadata anew.")
    return content
