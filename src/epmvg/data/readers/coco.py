"""COCO-style JSON with phrases in its annotations, and MDETR's, whose annotations point at spans of a caption."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from epmvg.core.types import InputError
from epmvg.data.readers.annotations import Located, parsed
from epmvg.data.readers.fields import (
    Annotation,
    enclosing_box,
    four_numbers,
    index_by_id,
    merged,
    optional,
    picked,
    require,
    require_box,
    require_number,
    short_repr,
    to_xywh,
    union_box,
)

PHRASE_KEYS = ("phrase", "caption", "expression", "sentence", "sent")  # several phrases: a list under "sentences"
STATED_KEYS = (
    "image",
    "phrase",
    "bbox",
    "width",
    "height",
)  # what COCO and ODVG have a place for, besides `attributes`
_INFO = {"contributor": "epmvg"}  # of files that `as_coco` makes, whose `attributes` are all that an annotation holds


class CrowdError(InputError):
    """The annotation is of several things at once."""

    reason = "the annotation is a crowd"


def coco_annotations(content: dict[str, Any], file: Path) -> Located[Annotation]:
    """Yield (where it stands, annotation or what is wrong with it) of a parsed COCO-style or MDETR file.

    Raises:
        InputError: there is no list of annotations, or two images have one id.
    """
    images = index_by_id(content["images"], ("file_name", "caption"), f"{file}, images")
    annotations = [
        (f"{file}, annotation {number}", one)
        for number, one in enumerate(require(content, "annotations", list, str(file)))
    ]
    if any(isinstance(image, dict) and isinstance(image.get("caption"), str) for image in content["images"][:1]):
        yield from _caption_annotations(annotations, images)
        return
    categories = index_by_id(optional(content, "categories", list, str(file)) or [], ("name",), f"{file}, categories")
    ours = content.get("info") == _INFO
    for where, annotation in annotations:
        yield from parsed(where, _phrase_annotations(annotation, images, None if ours else categories, where))


def as_coco(annotations: Iterable[Annotation]) -> dict[str, Any]:
    """Return annotations as one COCO-style object, from which `coco_annotations` makes the same again."""
    images: dict[tuple[Any, ...], Annotation] = {}
    written = []
    for number, one in enumerate(annotations, 1):
        size = picked(one, "width", "height")
        fresh = {"id": len(images) + 1, "file_name": one["image"]} | size
        image = images.setdefault((one["image"], *size.values()), fresh)
        stated = {"id": number, "image_id": image["id"], "category_id": 1, "bbox": one["bbox"], "iscrowd": 0}
        own = {key: value for key, value in one.items() if key not in STATED_KEYS}
        stated["area"] = one["bbox"][2] * one["bbox"][3]
        written.append(stated | {"phrase": one["phrase"], "attributes": own})
    categories = [{"id": 1, "name": "thing", "supercategory": ""}]
    return {"info": _INFO, "images": list(images.values()), "annotations": written, "categories": categories}


def image_keys(image: Annotation, key: str) -> Annotation:
    """Return what the entry of an image, whose path stands under `key`, states for each of its annotations."""
    return {"image": image[key]} | picked(image, "width", "height", "split")


def _phrase_annotations(
    annotation: Any, images: dict[str, Annotation], categories: dict[str, Annotation] | None, where: str
) -> Iterator[Annotation]:
    """Yield an annotation for each of its phrases; without categories, the file is one of ours."""
    image = _image_of(annotation, images, where)
    if annotation.get("iscrowd") in (1, "1"):
        raise CrowdError(f"{where} is a crowd, whose box is of no single thing: delete it.")
    own = dict(optional(annotation, "attributes", dict, where) or {})
    stated: Annotation = {"bbox": annotation.get("bbox")}
    if categories is not None:
        stated["ann_id"] = annotation.get("id")
        category_id = annotation.get("category_id")
        category = categories.get(str(category_id) if isinstance(category_id, int | str) else "", {}).get("name")
        stated |= ({"category": category} if isinstance(category, str) else {}) | picked(annotation, "split")
        rotation = {"rotation": own.pop("rotation", annotation.get("rotation")) or 0}
        degrees, box = require_number(rotation, "rotation", where) % 360, four_numbers(stated["bbox"])
        if degrees and box:
            x, y, w, h = box
            stated |= {"bbox": enclosing_box(box, degrees, (x + w / 2, y + h / 2)), "rotated": degrees}
    for phrase in _phrases(annotation, where):
        yield merged(image_keys(image, "file_name") | stated | {"phrase": phrase}, own)


def _phrases(annotation: Annotation, where: str) -> list[str]:
    for key in PHRASE_KEYS:
        if isinstance(annotation.get(key), str):
            return [annotation[key]]
    sentences = annotation.get("sentences")
    if not isinstance(sentences, list):
        raise InputError(f'{where} has no "phrase": give each annotation the words that mean its box.')
    return [one if isinstance(one, str) else require(one, "sent", str, where) for one in sentences]


def _caption_annotations(annotations: list[tuple[str, Any]], images: dict[str, Annotation]) -> Located[Annotation]:
    """Yield the annotations of MDETR: equal spans of a caption are one phrase, whose box is the union of theirs.

    In its files of the RefCOCO family the whole caption is the phrase.
    """
    groups: dict[tuple[int, str], tuple[Annotation, list[tuple[str, Annotation]]]] = {}
    for where, annotation in annotations:
        try:
            image = _image_of(annotation, images, where)
        except InputError as error:
            yield where, error
            continue
        whole = str(image.get("dataset_name", "")).startswith("refcoco")
        spans = "" if whole else short_repr(annotation.get("tokens_positive"))
        groups.setdefault((id(image), spans), (image, []))[1].append((where, annotation))
    for (_, spans), (image, members) in groups.items():
        yield from parsed(members[0][0], _span_annotation(image, bool(spans), members))


def _span_annotation(image: Annotation, has_spans: bool, members: list[tuple[str, Annotation]]) -> Iterator[Annotation]:
    """Yield the annotation of one phrase of a caption, whose boxes are those of its members."""
    where, first = members[0]
    caption = require(image, "caption", str, where)
    boxes = [require_box(one, "bbox", at) for at, one in members]
    yield {
        **picked(image, "dataset_name", "original_id"),
        **{"ann_id": first.get("id"), "n_boxes": len(members)},
        **image_keys(image, "file_name"),
        "phrase": _words(caption, first, where) if has_spans else caption,
        "bbox": to_xywh(union_box([(x, y, x + w, y + h) for x, y, w, h in boxes])),
    }


def _words(caption: str, annotation: Annotation, where: str) -> str:
    """Return the words of a caption that the spans [start, end] of an annotation cut out."""
    words = []
    for span in require(annotation, "tokens_positive", list, where):
        if not isinstance(span, list) or len(span) != 2 or not all(isinstance(end, int) for end in span):
            raise InputError(
                f'{where}: "tokens_positive" holds {short_repr(span)}, it must be [start, end]; fix the annotation.'
            )
        words.append(caption[max(0, span[0]) : max(0, span[1])].strip())
    return " ".join(words)


def _image_of(annotation: object, images: dict[str, Annotation], where: str) -> Annotation:
    """Return the entry of the image that an annotation is of."""
    image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
    if isinstance(image_id, bool) or not isinstance(image_id, int | str) or str(image_id) not in images:
        raise InputError(f'{where}: "image_id" is {short_repr(image_id)}, it must be the id of an image; fix it.')
    image = images[str(image_id)]
    require(image, "file_name", str, f"{where}, image {short_repr(image_id)}")
    return image
