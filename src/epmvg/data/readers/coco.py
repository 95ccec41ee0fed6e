"""JSON files of images and annotations: COCO-style with a phrase an annotation, MDETR's captions with spans, ODVG's
regions line by line, lists of sentences as MiniGPT-4 scores the RefCOCO family, Label Studio's export, and lists of
our own rows. Which it is shows in the file.

COCO and MDETR have boxes as x, y, w, h; ODVG as corners. What our rows hold beyond that goes into `attributes`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from epmvg.core.types import Box, InputError
from epmvg.data.readers.files import four_numbers, need, parse_json, read_json, refuse_pointer, shown
from epmvg.data.readers.jsonl import LeftOutError, Row, each, length, line_rows, merged
from epmvg.data.readers.label_studio import is_task, task_rows

Boxes = Literal["union", "all"]
Rows = Iterator[tuple[str, Row | InputError]]
"""(where it stands, a row or what is wrong with it)."""

PHRASE_KEYS = ("phrase", "caption", "expression", "sentence", "sent")
"""Where an annotation may keep its phrase, or its phrases in a list under "sentences"."""

_GEOMETRY = ("image", "phrase", "bbox", "width", "height")
_OURS = {"contributor": "epmvg"}
"""`info` of the files that `coco_of` makes, whose `attributes` are all that a row holds."""

_HEAD = 65_536  # bytes of a first line that are looked at


def layout(file: Path) -> Literal["rows", "odvg", "whole"]:
    """Tell from the first line of a .json or .jsonl file whether it holds our rows line by line, ODVG, or one value.

    Raises:
        InputError: the file cannot be opened, or is a Git LFS pointer.
    """
    try:
        with file.open("rb") as lines:
            line = next((line for line in iter(lambda: lines.readline(_HEAD), b"") if line.strip()), b"")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{file} cannot be opened ({reason}): check the path.") from error
    refuse_pointer(line, file)
    by_line = file.suffix.lower() == ".jsonl"
    try:
        first = parse_json(line.strip(), str(file), "")
    except InputError:
        return "rows" if by_line and line.strip() not in (b"{", b"[") else "whole"
    if is_odvg(first):
        return "odvg"
    if isinstance(first, dict) and not isinstance(first.get("images"), list):
        return "rows" if by_line or {"image", "phrase", "bbox"} & first.keys() else "whole"
    return "whole" if isinstance(first, dict | list) and (first or not by_line) else "rows"


def json_rows(file: Path, boxes: Boxes = "union") -> Rows:
    """Yield (where it stands, row) of a .json or .jsonl file that holds phrases and boxes.

    Args:
        boxes: what a phrase with several boxes means: their union, or a row for each.

    Raises:
        InputError: it is none of the kinds above, or torn.
    """
    built = layout(file)
    if built == "rows":
        yield from line_rows(file)
    elif built == "odvg":
        yield from odvg_rows(file, boxes)
    else:
        yield from _whole_rows(read_json(file), file, boxes)


def _whole_rows(content: Any, file: Path, boxes: Boxes) -> Rows:
    if is_odvg(content):
        yield from each(str(file), _line_rows(content, str(file), boxes))
    elif isinstance(content, list):
        yield from _list_rows(content, file)
    elif isinstance(content, dict) and isinstance(content.get("images"), list):
        images = content["images"]
        if any(isinstance(image, dict) and isinstance(image.get("caption"), str) for image in images[:1]):
            yield from _caption_rows(content, file, boxes)
        else:
            yield from _phrase_rows(content, file)
    else:
        raise InputError(
            f"{file} is neither COCO-style, MDETR, ODVG, Label Studio's export nor a list of rows: see docs/data.md."
        )


def odvg_rows(file: Path, boxes: Boxes = "union") -> Rows:
    """Yield (where it stands, row) of an ODVG file, one line an image and a caption; detections are malformed rows."""
    for where, line in line_rows(file):
        if isinstance(line, InputError):
            yield where, line
        else:
            yield from each(where, _line_rows(line, where, boxes))


def _line_rows(line: Row, where: str, boxes: Boxes) -> Iterator[Row]:
    """Yield the rows of one line of ODVG."""
    if "grounding" not in line:
        raise InputError(
            f'{where} has no "grounding": detections without phrases cannot be learned from; leave them out.'
        )
    need(line, "filename", str, where)
    picture = _picture(line, "filename")
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
            yield merged(picture | {"phrase": phrase, "bbox": bbox}, own)


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
    return {"info": _OURS, "images": list(images.values()), "annotations": annotations, "categories": categories}


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


def _phrase_rows(content: dict[str, Any], file: Path) -> Rows:
    """COCO-style: each annotation has a phrase or several."""
    images = _images(content, file)
    ours = content.get("info") == _OURS
    names = {
        str(row["id"]): row["name"]
        for row in content.get("categories") or []
        if isinstance(row, dict) and isinstance(row.get("id"), int | str) and isinstance(row.get("name"), str)
    }
    for number, annotation in enumerate(need(content, "annotations", list, str(file))):
        where = f"{file}, annotation {number}"
        yield from each(where, _annotation_rows(annotation, images, names, ours, where))


def _annotation_rows(
    annotation: object, images: dict[str, Row], names: dict[str, str], ours: bool, where: str
) -> Iterator[Row]:
    image = _image_of(annotation, images, where)
    if not isinstance(annotation, dict) or annotation.get("iscrowd") in (1, "1"):
        raise LeftOutError(
            "the annotation is a crowd", f"{where} is a crowd, whose box is of no single thing: delete it."
        )
    phrases = _phrases_of(annotation, where)
    own = need(annotation, "attributes", dict, where) if annotation.get("attributes") is not None else {}
    stated: Row = {"bbox": annotation.get("bbox")}
    if not ours:
        own = dict(own)
        stated["ann_id"] = annotation.get("id")
        if str(annotation.get("category_id")) in names:
            stated["category"] = names[str(annotation["category_id"])]
        if "split" in annotation:
            stated["split"] = annotation["split"]
        angle = _angle(own.pop("rotation", None) if "rotation" in own else annotation.get("rotation"))
        box = four_numbers(stated["bbox"])
        if angle and box:
            stated |= {"bbox": upright_hull(box, angle), "rotated": angle}
    for phrase in phrases:
        yield merged(_picture(image) | stated | {"phrase": phrase}, own)


def _angle(value: object) -> float:
    """Return a rotation in degrees; 0 where none is stated."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else 0
    try:
        return float(number) % 360 if math.isfinite(number) else 0.0
    except OverflowError:
        return 0.0


def upright_hull(box: Box, degrees: float) -> list[float]:
    """Return the upright [x, y, w, h] around a box (x, y, w, h) that is turned about its centre."""
    x, y, w, h = box
    sine, cosine = abs(math.sin(math.radians(degrees))), abs(math.cos(math.radians(degrees)))
    across, down = round(w * cosine + h * sine, 6), round(w * sine + h * cosine, 6)
    return [x + (w - across) / 2, y + (h - down) / 2, across, down]


def _caption_rows(content: dict[str, Any], file: Path, boxes: Boxes) -> Rows:
    """MDETR: an image entry is a caption, annotations point at spans of it; equal spans are one phrase's boxes.

    In the files of the RefCOCO family the whole caption is the phrase.
    """
    images = _images(content, file)
    targets: dict[tuple[str, str], list[tuple[str, Row]]] = {}
    for number, annotation in enumerate(need(content, "annotations", list, str(file))):
        where = f"{file}, annotation {number}"
        try:
            image = _image_of(annotation, images, where)
        except InputError as error:
            yield where, error
            continue
        image_id = _id_of(annotation, "image_id", where)
        whole = str(image.get("dataset_name", "")).startswith("refcoco")
        spans = "" if whole else shown(annotation.get("tokens_positive"))
        targets.setdefault((image_id, spans), []).append((where, annotation))
    for (image_id, spans), members in targets.items():
        yield from each(members[0][0], _target_rows(images[image_id], spans, members, boxes, file))


def _target_rows(image: Row, spans: str, members: list[tuple[str, Row]], boxes: Boxes, file: Path) -> Iterator[Row]:
    """Yield the rows of one phrase of a caption, whose boxes are `members`."""
    where, first = members[0]
    caption = need(image, "caption", str, f"{file}, image {shown(image.get('id'))}")
    phrase = _spans(caption, first.get("tokens_positive"), where) if spans else caption
    found = [four_numbers(one.get("bbox")) for _, one in members]
    whole_boxes = [box for box in found if box is not None]
    if len(whole_boxes) != len(found):
        raise InputError(f"{where} has no box of four numbers: mend or delete it.")
    own: Row = {key: image[key] for key in ("dataset_name", "original_id") if key in image}
    own |= {"ann_id": first.get("id"), "n_boxes": len(members)}
    for bbox in _targets(whole_boxes, boxes):
        yield own | _picture(image) | {"phrase": phrase, "bbox": bbox}


def _list_rows(content: list[Any], file: Path) -> Rows:
    """Yield the rows of a list of sentences, of Label Studio's tasks, or of our own rows."""
    if content and is_task(content[0]):
        for number, task in enumerate(content):
            where = f"{file}, task {number}"
            yield from each(where, task_rows(task, where))
        return
    for number, line in enumerate(content):
        where = f"{file}, row {number}"
        if isinstance(line, dict) and "image" in line:
            yield where, line
        else:
            yield from each(where, _sentence_rows(line, where, file))


def _sentence_rows(line: Any, where: str, file: Path) -> Iterator[Row]:
    """MiniGPT-4: {"img_id": COCO file name and annotation, "sents", "bbox"}; refcoco_val.json is of split val."""
    if not isinstance(line, dict) or "img_id" not in line:
        raise InputError(f'{where} has neither "image" nor "img_id": see docs/data.md for the lists that are read.')
    ref = need(line, "img_id", str, where)
    own = {"phrase": need(line, "sents", str, where), "bbox": line.get("bbox"), "ref": ref}
    yield _split_of(file) | _picture({**line, "image": ref.rpartition("_")[0] + ".jpg"}, "image") | own


def _split_of(file: Path) -> Row:
    """Return the split that the name of a list of sentences ends in, if it does."""
    named = file.stem.rpartition("_")[2]
    return {"split": named} if named in ("train", "val", "test", "testA", "testB") else {}


def _images(content: dict[str, Any], file: Path) -> dict[str, Row]:
    """Return the entries of images by their ids, as text, without malformed ones.

    Raises:
        InputError: two different images have one id.
    """
    found: dict[str, Row] = {}
    for image in content["images"]:
        try:
            number, name = _id_of(image, "id", ""), need(image, "file_name", str, "")
        except InputError:
            continue  # said of the annotations that name it
        before = found.setdefault(number, image)
        if (before["file_name"], before.get("caption")) != (name, image.get("caption")):
            raise InputError(
                f"{file}: image id {shown(image['id'])} stands for {shown(before['file_name'])} and for {shown(name)};"
                " give each image an id of its own."
            )
    return found


def _id_of(row: object, key: str, where: str) -> str:
    """Return a whole number or text that names something, as text."""
    value = row.get(key) if isinstance(row, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise InputError(f'{where}: "{key}" is {shown(value)}, it must be a whole number or a text; mend the file.')
    return value if isinstance(value, str) else shown(value)


def _picture(image: Row, key: str = "file_name") -> Row:
    return {"image": image[key]} | {key: image[key] for key in ("width", "height", "split") if key in image}


def _image_of(annotation: object, images: dict[str, Row], where: str) -> Row:
    number = _id_of(annotation, "image_id", where)
    if number not in images:
        raise InputError(
            f'{where} names image {shown(number)}, for which the file has no "id" and "file_name": mend or delete it.'
        )
    return images[number]


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
