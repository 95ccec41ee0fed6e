"""COCO-style JSON with phrases in its annotations, or in their attributes as CVAT imports and exports them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from epmvg.core.types import InputError
from epmvg.data.readers.annotations import Located, parsed
from epmvg.data.readers.fields import Annotation, index_by_id, merged, picked, require, short_repr

PHRASE_KEYS = ("phrase", "caption", "expression", "sentence", "sent")  # several phrases: a list under "sentences"
STATED_KEYS = ("image", "phrase", "bbox", "width", "height")  # for which COCO and ODVG have a place
_INFO = {"contributor": "epmvg"}  # of files that `as_coco` makes, whose `attributes` are all that an annotation holds


def coco_annotations(content: dict[str, Any], file: Path) -> Located[Annotation]:
    """Yield (location, annotation or what is wrong with it) of a parsed COCO-style file.

    Raises:
        InputError: there is no list of annotations, or two images or categories have one id.
    """
    images = index_by_id(content["images"], "file_name", f"{file}, images")
    listed = require({"categories": []} | content, "categories", list, str(file))
    categories = index_by_id(listed, "name", f"{file}, categories")
    ours = content.get("info") == _INFO
    for number, annotation in enumerate(require(content, "annotations", list, str(file))):
        location = f"{file}, annotation {number}"
        yield from parsed(location, _phrase_annotations(annotation, images, None if ours else categories, location))


def as_coco(annotations: Iterable[Annotation]) -> dict[str, Any]:
    """Return annotations as one COCO-style object, from which `coco_annotations` makes the same again."""
    images: dict[tuple[Any, ...], Annotation] = {}
    written = []
    for number, one in enumerate(annotations, 1):
        size = picked(one, "width", "height")
        fresh = {"id": len(images) + 1, "file_name": one["image"]} | size
        image = images.setdefault((one["image"], *size.values()), fresh)
        stated = {"id": number, "image_id": image["id"], "category_id": 1, "bbox": one["bbox"], "iscrowd": 0}
        own = {key: value for key, value in one.items() if key == "phrase" or key not in STATED_KEYS}
        stated["area"] = one["bbox"][2] * one["bbox"][3]
        written.append(stated | {"phrase": one["phrase"], "attributes": own})
    categories = [{"id": 1, "name": "thing", "supercategory": ""}]
    return {"info": _INFO, "images": list(images.values()), "annotations": written, "categories": categories}


def image_keys(image: Annotation, key: str) -> Annotation:
    """Return what the entry of an image, whose path stands under `key`, states for each of its annotations."""
    return {"image": image[key]} | picked(image, "width", "height", "split")


def _phrase_annotations(
    annotation: Any, images: dict[str, Annotation], categories: dict[str, Annotation] | None, location: str
) -> Iterator[Annotation]:
    """Yield an annotation for each of its phrases; without categories, the file is one of ours."""
    image = _image_of(annotation, images, location)
    if annotation.get("iscrowd") in (1, "1"):
        raise InputError(f"{location} is a crowd, whose box is of no single object. Delete it.")
    own = require(annotation, "attributes", dict, location) if annotation.get("attributes") is not None else {}
    stated = {"bbox": annotation.get("bbox")}
    if categories is not None:
        if own.get("rotation") or annotation.get("rotation"):
            raise InputError(f"{location} has a rotated box, and only upright ones are read. Annotate it again.")
        stated["ann_id"] = annotation.get("id")
        category = categories.get(str(annotation.get("category_id")), {}).get("name")
        stated |= ({"category": category} if isinstance(category, str) else {}) | picked(annotation, "split")
    for phrase in _phrases(annotation, own, location):
        further = {key: value for key, value in own.items() if (key, value) != ("phrase", phrase)}
        yield merged(image_keys(image, "file_name") | stated | {"phrase": phrase}, further)


def _phrases(annotation: Annotation, attributes: Annotation, location: str) -> list[str]:
    for stated in (annotation, attributes):
        for key in PHRASE_KEYS:
            if isinstance(stated.get(key), str):
                return [stated[key]]
        if isinstance(sentences := stated.get("sentences"), list):
            return [one if isinstance(one, str) else require(one, "sent", str, location) for one in sentences]
    raise InputError(
        f'{location} has no "phrase". Give each annotation, or its attributes, the words that mean its box.'
    )


def _image_of(annotation: object, images: dict[str, Annotation], location: str) -> Annotation:
    """Return the entry of the image that an annotation is of."""
    image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
    if isinstance(image_id, bool) or not isinstance(image_id, int | str) or str(image_id) not in images:
        raise InputError(f'{location}: "image_id" is {short_repr(image_id)}, it must be the id of an image. Fix it.')
    image = images[str(image_id)]
    require(image, "file_name", str, f"{location}, image {short_repr(image_id)}")
    return image
