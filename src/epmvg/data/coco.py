"""JSON files of images and annotations: COCO-style with a phrase an annotation, MDETR's captions with spans, ODVG's
regions line by line, and lists of sentences as MiniGPT-4 scores the RefCOCO family. Which it is shows in the file.

COCO and MDETR have boxes as x, y, w, h; ODVG as corners. What our rows hold beyond that goes into `attributes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from epmvg.data.files import four_numbers, need, read_json, shown
from epmvg.data.jsonl import Row, json_lines, length
from epmvg.types import Box, InputError

Boxes = Literal["union", "all"]

PHRASE_KEYS = ("phrase", "caption", "expression", "sentence", "sent")
"""Where an annotation may keep its phrase, or its phrases in a list under "sentences"."""

_GEOMETRY = ("image", "phrase", "bbox", "width", "height")


def json_rows(file: Path, boxes: Boxes = "union") -> Iterator[tuple[str, Row]]:
    """Yield (where it stands, row) of a JSON file that holds phrases and boxes.

    Args:
        boxes: what a phrase with several boxes means: their union, or a row for each.

    Raises:
        InputError: it is none of the kinds above, or torn.
    """
    try:
        content = read_json(file)
    except InputError:
        if not is_odvg_file(file):
            raise
        content = None
    if content is None or is_odvg(content):
        yield from odvg_rows(file, boxes)
        return
    if isinstance(content, list):
        yield from _sentence_rows(content, file)
    elif isinstance(content, dict) and isinstance(content.get("images"), list):
        images = content["images"]
        if any(isinstance(image, dict) and isinstance(image.get("caption"), str) for image in images[:1]):
            yield from _caption_rows(content, file, boxes)
        else:
            yield from _phrase_rows(content, file)
    else:
        raise InputError(f"{file} is neither COCO-style, MDETR, ODVG nor a list of sentences: see docs/data.md.")


def odvg_rows(file: Path, boxes: Boxes = "union") -> Iterator[tuple[str, Row]]:
    """Yield (where it stands, row) of an ODVG file, one line an image and a caption.

    Raises:
        InputError: a line is not such an object, or holds detections without phrases.
    """
    for where, line in json_lines(file):
        if "grounding" not in line:
            raise InputError(
                f'{where} has no "grounding": detections without phrases cannot be learned from; leave them out.'
            )
        picture = _picture(line, need(line, "filename", str, where))
        for number, region in enumerate(need(need(line, "grounding", dict, where), "regions", list, where)):
            at = f"{where}, region {number}"
            phrase = need(region, "phrase", str, at)
            stated = need(region, "bbox", list, at)
            corners = [four_numbers(one) for one in (stated if stated and isinstance(stated[0], list) else [stated])]
            found = [(a, b, length(a, c), length(b, d)) for a, b, c, d in (one for one in corners if one)]
            if not found or len(found) != len(corners):
                raise InputError(f"{at} has no box of four numbers: mend or delete it.")
            own = _attributes(region, {"phrase", "bbox", "tokens_positive"})
            for bbox in _targets(found, boxes):
                yield at, picture | own | {"image": picture["image"], "phrase": phrase, "bbox": bbox}


def coco_of(rows: Iterable[Row]) -> dict[str, Any]:
    """Return rows as one COCO-style object, from which `json_rows` makes the same rows again."""
    images: dict[tuple[Any, ...], Row] = {}
    annotations = []
    for number, row in enumerate(rows, 1):
        size = {key: row[key] for key in ("width", "height") if key in row}
        fresh = {"id": len(images) + 1, "file_name": row["image"]} | size
        image = images.setdefault((row["image"], *size.values()), fresh)
        own = {key: value for key, value in row.items() if key not in _GEOMETRY}
        annotation = {"id": number, "image_id": image["id"], "category_id": 1, "bbox": row["bbox"], "iscrowd": 0}
        area = row["bbox"][2] * row["bbox"][3]
        annotations.append(annotation | {"area": area, "phrase": row["phrase"], "attributes": own})
    categories = [{"id": 1, "name": "thing", "supercategory": ""}]
    return {"images": list(images.values()), "annotations": annotations, "categories": categories}


def odvg_of(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield rows as lines of ODVG, each phrase its own caption."""
    for row in rows:
        x, y, w, h = row["bbox"]
        own = {key: value for key, value in row.items() if key not in _GEOMETRY}
        region = {"phrase": row["phrase"], "bbox": [x, y, x + w, y + h], "attributes": own}
        size = {key: row[key] for key in ("height", "width") if key in row}
        yield {"filename": row["image"]} | size | {"grounding": {"caption": row["phrase"], "regions": [region]}}


def is_odvg(line: object) -> bool:
    """Say whether an object is a line of ODVG rather than one of our rows."""
    return isinstance(line, dict) and "filename" in line and ("grounding" in line or "detection" in line)


def is_odvg_file(file: Path) -> bool:
    """Say whether a file's first line is one of ODVG."""
    try:
        return is_odvg(next(json_lines(file), ("", None))[1])
    except InputError:
        return False


def _phrase_rows(content: dict[str, Any], file: Path) -> Iterator[tuple[str, Row]]:
    """COCO-style: each annotation has a phrase or several."""
    pictures = _pictures(content, file)
    names = {
        row["id"]: row["name"]
        for row in content.get("categories") or []
        if isinstance(row, dict) and isinstance(row.get("id"), int) and isinstance(row.get("name"), str)
    }
    for number, annotation in enumerate(need(content, "annotations", list, str(file))):
        where = f"{file}, annotation {number}"
        picture = _picture_of(annotation, pictures, where)
        own = {"ann_id": annotation.get("id")}
        if isinstance(annotation.get("category_id"), int) and annotation["category_id"] in names:
            own["category"] = names[annotation["category_id"]]
        if "split" in annotation:
            own["split"] = annotation["split"]
        if "attributes" in annotation:
            own = need(annotation, "attributes", dict, where)
        for phrase in _phrases_of(annotation, where):
            yield where, picture | own | {"image": picture["image"], "phrase": phrase, "bbox": annotation.get("bbox")}


def _caption_rows(content: dict[str, Any], file: Path, boxes: Boxes) -> Iterator[tuple[str, Row]]:
    """MDETR: an image entry is a caption, annotations point at spans of it; equal spans are one phrase's boxes.

    In the files of the RefCOCO family the whole caption is the phrase.
    """
    pictures = _pictures(content, file)
    captions = {image["id"]: image for image in content["images"]}
    targets: dict[tuple[int, str], list[tuple[str, Row]]] = {}
    for number, annotation in enumerate(need(content, "annotations", list, str(file))):
        where = f"{file}, annotation {number}"
        _picture_of(annotation, pictures, where)
        whole = str(captions[annotation["image_id"]].get("dataset_name", "")).startswith("refcoco")
        spans = "" if whole else shown(annotation.get("tokens_positive"))
        targets.setdefault((annotation["image_id"], spans), []).append((where, annotation))
    for (image_id, spans), members in targets.items():
        where, first = members[0]
        image = captions[image_id]
        caption = need(image, "caption", str, f"{file}, image {image_id}")
        phrase = _spans(caption, first.get("tokens_positive"), where) if spans else caption
        found = [four_numbers(one.get("bbox")) for _, one in members]
        whole_boxes = [box for box in found if box is not None]
        if len(whole_boxes) != len(found):
            raise InputError(f"{where} has no box of four numbers: mend or delete it.")
        own = {key: image[key] for key in ("dataset_name", "original_id") if key in image}
        own |= {"ann_id": first.get("id"), "n_boxes": len(members)}
        for bbox in _targets(whole_boxes, boxes):
            yield where, own | pictures[image_id] | {"phrase": phrase, "bbox": bbox}


def _sentence_rows(content: list[Any], file: Path) -> Iterator[tuple[str, Row]]:
    """MiniGPT-4: {"img_id": COCO file name and annotation, "sents", "bbox"}; the file's name ends in the split."""
    split = file.stem.rpartition("_")[2]
    for number, line in enumerate(content):
        where = f"{file}, row {number}"
        ref = need(line, "img_id", str, where)
        picture = _picture(line, ref.rpartition("_")[0] + ".jpg")
        row = {"phrase": need(line, "sents", str, where), "bbox": line.get("bbox"), "split": split, "ref": ref}
        yield where, picture | row


def _pictures(content: dict[str, Any], file: Path) -> dict[int, Row]:
    where = f"{file}, an image"
    return {
        need(image, "id", int, where): _picture(image, need(image, "file_name", str, where))
        for image in content["images"]
    }


def _picture(image: Row, name: str) -> Row:
    return {"image": name} | {key: image[key] for key in ("width", "height", "split") if key in image}


def _picture_of(annotation: object, pictures: dict[int, Row], where: str) -> Row:
    number = need(annotation, "image_id", int, where)
    if number not in pictures:
        raise InputError(f"{where} names image {shown(number)}, which the file does not have: mend or delete it.")
    return pictures[number]


def _phrases_of(annotation: Row, where: str) -> list[str]:
    for key in PHRASE_KEYS:
        if isinstance(annotation.get(key), str):
            return [annotation[key]]
    sentences = annotation.get("sentences")
    if not isinstance(sentences, list):
        raise InputError(f'{where} has no "phrase": give each annotation the words that mean its box.')
    return [one if isinstance(one, str) else need(one, "sent", str, where) for one in sentences]


def _spans(caption: str, spans: object, where: str) -> str:
    """Return the words of a caption that spans [start, end] cut out."""
    if not isinstance(spans, list) or not spans:
        raise InputError(f'{where} has no "tokens_positive": say which letters of the caption mean its box.')
    parts = []
    for span in spans:
        if not isinstance(span, list) or len(span) != 2 or not all(isinstance(end, int) for end in span):
            raise InputError(f'{where}: "tokens_positive" holds {shown(span)}, it must be [start, end]; mend it.')
        parts.append(caption[max(0, span[0]) : max(0, span[1])].strip())
    return " ".join(parts)


def _targets(found: list[Box], boxes: Boxes) -> list[list[float]]:
    """Return the boxes [x, y, w, h] that a phrase with these asks for."""
    if boxes == "all" or len(found) == 1:
        return [list(box) for box in found]
    x0, y0 = min(box[0] for box in found), min(box[1] for box in found)
    x1, y1 = max(box[0] + box[2] for box in found), max(box[1] + box[3] for box in found)
    return [[x0, y0, length(x0, x1), length(y0, y1)]]


def _attributes(region: Row, known: set[str]) -> Row:
    if isinstance(region.get("attributes"), dict):
        return dict(region["attributes"])
    return {key: value for key, value in region.items() if key not in known}
