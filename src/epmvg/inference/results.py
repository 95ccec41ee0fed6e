"""What a user does with answers: draw them, cut them out, hand them to other tools."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex, overload
from urllib.parse import quote

import numpy as np
from PIL import Image

from epmvg.core.types import InputError, Prediction
from epmvg.data.readers.coco import as_coco
from epmvg.data.readers.files import relative_to
from epmvg.inference.draw import draw_boxes


class Predictions(list[Prediction]):
    """The answers to phrases about one picture, in the order asked; a slice of them is `Predictions`, too.

    They pickle: a file's picture is then opened from its path again, and a picture without a file travels along.

    Attributes:
        picture: the upright picture that the boxes are in, opened when it is first wanted.
        image: the file's name as it was given, "" where the picture came without one.
        size: (width, height) of the picture; where it is given, the picture need not be opened for it.
    """

    def __init__(
        self,
        answers: Iterable[Prediction],
        open_picture: Callable[[], Image.Image],
        image: str = "",
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(answers)
        self._open_picture = open_picture
        self._size = size
        self.image = image

    @overload
    def __getitem__(self, index: SupportsIndex) -> Prediction: ...

    @overload
    def __getitem__(self, index: slice) -> Predictions: ...

    def __getitem__(self, index: SupportsIndex | slice) -> Prediction | Predictions:
        """Return one prediction, or some with the same picture."""
        if isinstance(index, slice):
            return Predictions(super().__getitem__(index), self._open_picture, self.image, self._size)
        return super().__getitem__(index)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the opened picture, which is had again."""
        return {key: value for key, value in vars(self).items() if key != "picture"}

    @cached_property
    def picture(self) -> Image.Image:
        return self._open_picture()

    @property
    def size(self) -> tuple[int, int]:
        return self._size or self.picture.size

    @property
    def found(self) -> list[Prediction]:
        """Those that were found: all of them, unless a lowest score was asked for."""
        return [one for one in self if one.found]

    def draw(self) -> Image.Image:
        """Return the picture with the boxes of what was found and their phrases drawn on it."""
        return draw_boxes(self.picture, [one.box for one in self.found], [one.phrase for one in self.found])

    def crop(self, number: int = 0, margin: float = 0.0) -> Image.Image:
        """Cut out what answer `number` found, with a margin of so many times the box's longer side.

        Raises:
            InputError: it was not found.
        """
        one = self[number]
        if not one.found:
            raise InputError(f"{one.phrase!r} was not found (score {one.score:.2f}): there is nothing to cut out.")
        x0, y0, x1, y1 = one.box
        space = margin * max(x1 - x0, y1 - y0)
        left = min(max(math.floor(x0 - space), 0), self.picture.width - 1)
        top = min(max(math.floor(y0 - space), 0), self.picture.height - 1)
        right = min(max(math.ceil(x1 + space), left + 1), self.picture.width)
        bottom = min(max(math.ceil(y1 + space), top + 1), self.picture.height)
        return self.picture.crop((left, top, right, bottom))

    def to_supervision(self) -> Any:
        """Return what was found as `supervision.Detections`; a class is a phrase, by its place among those asked.

        Raises:
            InputError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise InputError("to_supervision needs supervision: pip install 'epmvg[supervision]'.") from error
        return supervision.Detections(
            xyxy=np.array([one.box for one in self.found], np.float32).reshape(-1, 4),
            confidence=np.array([one.score for one in self.found], np.float32),
            class_id=np.array([number for number, one in enumerate(self) if one.found], int),
            data={"class_name": np.array([one.phrase for one in self.found], dtype=str)},
        )

    def to_dict(self) -> dict[str, Any]:
        """Return image, width, height and results as plain values for JSON."""
        results = [one.to_dict() for one in self]
        return {"image": self.image, "width": self.size[0], "height": self.size[1], "results": results}


def to_coco(answers: Predictions | Sequence[Predictions], root: Path | str | None = None) -> dict[str, Any]:
    """Return what was found as one COCO-style object that `epmvg data convert` and `epmvg train` read.

    An annotation has its phrase beside its box, and the score among its `attributes`.

    Args:
        answers: of one picture or several.
        root: file names become relative to this folder, for example that of the JSON file, from where they are read;
            by default they stay as they were given.
    """
    answers = _as_list(answers)
    names = [_relative(_name(about, number), root) for number, about in enumerate(answers)]
    rows = []
    for name, about in zip(names, answers, strict=True):
        picture = {"image": name, "width": about.size[0], "height": about.size[1]}
        rows += [picture | {"phrase": one.phrase, "bbox": _xywh(one), "score": one.score} for one in about.found]
    coco = as_coco(rows)
    there = {image["file_name"] for image in coco["images"]}
    for name, about in zip(names, answers, strict=True):
        if name not in there:  # asked, and nothing found
            size = {"width": about.size[0], "height": about.size[1]}
            coco["images"].append({"id": len(coco["images"]) + 1, "file_name": name} | size)
    return coco


def to_label_studio(answers: Predictions | Sequence[Predictions], prefix: str = "") -> list[dict[str, Any]]:
    """Return what was found as pre-annotated tasks of Label Studio, for the labelling set-up in docs/use.md.

    Args:
        answers: of one picture or several.
        prefix: put before an image's name, for example "/data/local-files/?d="; in an address that a browser opens,
            such as this one or https://..., the name is percent-encoded.
    """
    encode = quote if prefix.startswith(("/", "http:", "https:")) else str
    return [_task(about, prefix + encode(_name(about, number))) for number, about in enumerate(_as_list(answers))]


def _task(about: Predictions, image: str) -> dict[str, Any]:
    """One picture's task: a rectangle a phrase, in per cent of its sides, and the phrase as that region's text."""
    width, height = about.size
    result = []
    for number, one in enumerate(about.found):
        x, y, w, h = _xywh(one)
        place = {"x": 100 * x / width, "y": 100 * y / height, "width": 100 * w / width, "height": 100 * h / height}
        region = {
            "id": f"phrase-{number}",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": one.score,
        }
        place["rotation"] = 0
        result.append(region | {"from_name": "box", "type": "rectangle", "value": place})
        result.append(region | {"from_name": "phrase", "type": "textarea", "value": place | {"text": [one.phrase]}})
    scores = [one.score for one in about.found]
    prediction = {"model_version": "epmvg", "score": min(scores, default=0.0), "result": result}
    return {"data": {"image": image}, "predictions": [prediction]}


def _as_list(answers: Predictions | Sequence[Predictions]) -> Sequence[Predictions]:
    return [answers] if isinstance(answers, Predictions) else answers


def _relative(name: str, root: Path | str | None) -> str:
    if root is None:
        return name
    path = Path(name).expanduser()
    return relative_to(path, Path(root)) or path.absolute().as_posix()


def _name(about: Predictions, number: int) -> str:
    return about.image or f"image-{number + 1}"


def _xywh(one: Prediction) -> list[float]:
    x0, y0, x1, y1 = one.box
    return [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)]
