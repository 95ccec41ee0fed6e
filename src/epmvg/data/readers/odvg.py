"""ODVG: one image per line with a caption and its regions, whose boxes are corners."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from epmvg.core.types import InputError
from epmvg.data.readers.coco import STATED_KEYS, image_keys
from epmvg.data.readers.fields import Annotation, merged, picked, require, require_box, to_xywh, union_box


def is_odvg(line: object) -> bool:
    """Return whether an object is a line of ODVG rather than an annotation."""
    return isinstance(line, dict) and "filename" in line and ("grounding" in line or "detection" in line)


def odvg_annotations(line: Any, location: str) -> Iterator[Annotation]:
    """Yield an annotation for each region of a line; of several boxes the union."""
    if "grounding" not in line:
        raise InputError(f'{location} has no "grounding". Delete detections without phrases.')
    require(line, "filename", str, location)
    for number, region in enumerate(require(require(line, "grounding", dict, location), "regions", list, location)):
        at = f"{location}, region {number}"
        phrase = require(region, "phrase", str, at)
        stated = require(region, "bbox", list, at)
        several = stated if stated and isinstance(stated[0], list) else [stated]
        boxes = [require_box({"bbox": box}, "bbox", at) for box in several]
        own = region.get("attributes")
        if not isinstance(own, dict):
            own = {key: region[key] for key in region if key not in ("phrase", "bbox", "tokens_positive")}
        yield merged(image_keys(line, "filename") | {"phrase": phrase, "bbox": to_xywh(union_box(boxes))}, own)


def as_odvg(annotations: Iterable[Annotation]) -> Iterator[Annotation]:
    """Yield annotations as lines of ODVG, each phrase its own caption."""
    for one in annotations:
        x, y, w, h = one["bbox"]
        own = {key: value for key, value in one.items() if key not in STATED_KEYS}
        region = {"phrase": one["phrase"], "bbox": [x, y, x + w, y + h], "attributes": own}
        size = picked(one, "height", "width")
        yield {"filename": one["image"]} | size | {"grounding": {"caption": one["phrase"], "regions": [region]}}
