"""Label Studio's JSON export: tasks with an image, rectangles in percent of its sides, and texts that are phrases.

A rectangle and its text are two results of one region id. Of the annotations of a task the last counts that was not
cancelled; a file of predictions alone, as `to_label_studio` makes it, is read like annotations.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from epmvg.core.types import InputError
from epmvg.data.readers.fields import Annotation, four_numbers, picked, require, short_repr, size_of

_RESULTS = ("annotations", "predictions")


def is_task(value: object) -> bool:
    """Return whether an object is a task of Label Studio."""
    return isinstance(value, dict) and isinstance(value.get("data"), dict) and not value.keys().isdisjoint(_RESULTS)


def task_annotations(task: Any, location: str) -> Iterator[Annotation]:
    """Yield an annotation for each rectangle of a task."""
    data = require(task, "data", dict, location)
    image = _image(data, location)
    key = next(key for key in _RESULTS if key in task)
    done = [one for one in require(task, key, list, location) if isinstance(one, dict)]
    done = [one for one in done if not one.get("was_cancelled")]
    results = require(done[-1], "result", list, location) if done else []
    regions = [one for one in results if isinstance(one, dict) and isinstance(one.get("value"), dict)]
    phrases = {str(one.get("id")): _joined(one["value"]["text"]) for one in regions if "text" in one["value"]}
    for region in regions:
        value = region["value"]
        if "width" not in value or "text" in value:
            continue
        at = f"{location}, region {short_repr(region.get('id'))}"
        phrase = phrases.get(str(region.get("id"))) or _joined(value.get("rectanglelabels"))
        if not phrase:
            raise InputError(f"{at} has a rectangle and no text. Write its phrase, or delete it.")
        yield {"image": image, "phrase": phrase} | _box(region, at) | picked(data, "split", "id")


def _box(region: Annotation, location: str) -> Annotation:
    """Return the box of a rectangle in pixels, with the size of its image."""
    value = region["value"]
    size = size_of(region.get("original_width"), region.get("original_height"), location)
    percent = four_numbers([value.get(key) for key in ("x", "y", "width", "height")])
    if size is None or percent is None or value.get("rotation"):
        raise InputError(f"{location} is not an upright rectangle in an image with a size. Annotate it again.")
    bbox = [round(share * side / 100, 4) for share, side in zip(percent, 2 * size, strict=True)]
    return {"width": size[0], "height": size[1], "bbox": bbox}


def _image(data: Annotation, location: str) -> str:
    """Return the path of a task's image: the file behind `?d=`, else the path of its address; of an upload the name."""
    stated = data.get("image") or next((value for value in data.values() if isinstance(value, str)), None)
    if not isinstance(stated, str):
        raise InputError(f'{location}: "data" names no image. Export the tasks with their data.')
    try:
        address = urlsplit(stated)
        local = parse_qs(address.query).get("d")
    except ValueError:  # no address
        return stated
    if local:
        return local[0]
    if not address.scheme and "/data/" not in stated:
        return stated
    path = PurePosixPath(unquote(address.path))
    return path.name if "upload" in path.parts else str(path).lstrip("/")


def _joined(texts: object) -> str:
    return " ".join(text for text in (texts if isinstance(texts, list) else [texts]) if isinstance(text, str)).strip()
