"""Label Studio's JSON export: tasks with an image, rectangles in per cent of its sides, and texts that are phrases.

A rectangle and its text are two results of one region id. Of the annotations of a task the last counts that was not
cancelled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from epmvg.core.types import InputError
from epmvg.data.readers.files import need, shown


def is_task(value: object) -> bool:
    """Say whether an object is a task of Label Studio."""
    return isinstance(value, dict) and isinstance(value.get("data"), dict) and "annotations" in value


def task_rows(task: Any, where: str) -> Iterator[dict[str, Any]]:
    """Yield a row for each rectangle of a task; a task without annotations has none.

    Raises:
        InputError: the task is built otherwise, or a rectangle has no phrase.
    """
    image = _image_of(need(task, "data", dict, where), where)
    done = [one for one in need(task, "annotations", list, where) if isinstance(one, dict)]
    done = [one for one in done if not one.get("was_cancelled")]
    results = need(done[-1], "result", list, where) if done else []
    regions = [one for one in results if isinstance(one, dict) and isinstance(one.get("value"), dict)]
    phrases = {str(one.get("id")): _text_of(one["value"]) for one in regions if "text" in one["value"]}
    for region in regions:
        value = region["value"]
        if "width" not in value or "text" in value:
            continue
        at = f"{where}, region {shown(region.get('id'))}"
        phrase = phrases.get(str(region.get("id"))) or _label_of(value)
        if not phrase:
            raise InputError(f"{at} has a rectangle and no text: write the phrase that means it, or delete it.")
        width, height = (_number(region, key, at) for key in ("original_width", "original_height"))
        corner, size = (
            (_number(value, "x", at), _number(value, "y", at)),
            tuple(_number(value, k, at) for k in ("width", "height")),
        )
        box = [corner[0] * width / 100, corner[1] * height / 100, size[0] * width / 100, size[1] * height / 100]
        row: dict[str, Any] = {"image": image, "phrase": phrase, "width": width, "height": height}
        angle = _number(value, "rotation", at) if value.get("rotation") else 0.0
        if angle % 360:
            row |= {"bbox": _hull(box, angle), "rotated": angle}
        else:
            row["bbox"] = [round(side, 4) for side in box]
        yield row | {key: task["data"][key] for key in ("split", "id") if key in task["data"]}


def _hull(box: list[float], degrees: float) -> list[float]:
    """Return the upright [x, y, w, h] around a box that is turned clockwise about its top left corner."""
    x, y, w, h = box
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    across = [0.0, w * cosine, -h * sine, w * cosine - h * sine]
    down = [0.0, w * sine, h * cosine, w * sine + h * cosine]
    sides = (x + min(across), y + min(down), max(across) - min(across), max(down) - min(down))
    return [round(side, 4) for side in sides]


def _image_of(data: dict[str, Any], where: str) -> str:
    """Return the path of a task's image: the file behind `?d=`, else the path of its address; of an upload the name."""
    stated = data.get("image") or next((value for value in data.values() if isinstance(value, str)), None)
    if not isinstance(stated, str):
        raise InputError(f'{where}: "data" names no image; export the tasks with their data.')
    address = urlsplit(stated)
    local = parse_qs(address.query).get("d")
    if local:
        return local[0]
    if not address.scheme and "/data/" not in stated:
        return stated
    path = PurePosixPath(unquote(address.path))
    return path.name if "upload" in path.parts else str(path).lstrip("/")


def _text_of(value: dict[str, Any]) -> str:
    texts = value["text"] if isinstance(value["text"], list) else [value["text"]]
    return " ".join(text for text in texts if isinstance(text, str)).strip()


def _label_of(value: dict[str, Any]) -> str:
    labels = value.get("rectanglelabels")
    return " ".join(label for label in labels if isinstance(label, str)) if isinstance(labels, list) else ""


def _number(value: dict[str, Any], key: str, where: str) -> float:
    number = value.get(key)
    if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) < 1e9:
        raise InputError(f'{where}: "{key}" is {shown(number)}, it must be a number; mend the region.')
    return number
