"""Predictions of an image: drawn, cropped, and converted to COCO, Label Studio, YOLO and supervision."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

import numpy as np
import yaml
from PIL import Image

from epmvg.core.extras import optional_imports
from epmvg.core.files import expand_home
from epmvg.core.images import ImageSource, image_digest, open_image
from epmvg.core.types import InputError, Prediction
from epmvg.data.readers.coco import as_coco
from epmvg.data.readers.files import relative_to
from epmvg.inference.draw import draw_boxes


class Predictions(list[Prediction]):
    """The predictions for phrases in one image, in the order of the phrases.

    They pickle: an image file is then opened from its path again, any other image is pickled with them.

    Args:
        predictions: one per phrase.
        source: the image; `open_image` opens it when it is first needed.
        name: file name of the image; by default the path that `source` is.
        size: (width, height) of the upright image; by default it is opened for it.
        digest: `image_digest` of the source; an image file that has changed since is rejected.
    """

    def __init__(
        self,
        predictions: Iterable[Prediction],
        source: ImageSource,
        *,
        name: str | None = None,
        size: tuple[int, int] | None = None,
        digest: bytes | None = None,
    ) -> None:
        super().__init__(predictions)
        self.name = name if name is not None else str(source) if isinstance(source, Path | str) else ""
        self._source, self._size, self._digest = source, size, digest

    def __getstate__(self) -> dict[str, Any]:
        """Omit the opened image."""
        return {key: value for key, value in vars(self).items() if key != "image"}

    @cached_property
    def image(self) -> Image.Image:
        """The upright image that the boxes refer to.

        Raises:
            InputError: it cannot be opened, or has changed since the prediction.
        """
        if isinstance(self._source, Path | str) and self._digest not in (None, image_digest(self._source)):
            raise InputError(f"{self._source} has changed since the prediction. Predict again.")
        return open_image(self._source)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the image."""
        return self._size or self.image.size

    @property
    def found(self) -> list[Prediction]:
        """The predictions that count as found."""
        return [one for one in self if one.found]

    def draw(self) -> Image.Image:
        """Return a copy of the image with the found boxes and their phrases drawn on it."""
        return draw_boxes(self.image, [one.box for one in self.found], [one.phrase for one in self.found])

    def crop(self, number: int = 0, margin: float = 0.0) -> Image.Image:
        """Crop the box of prediction `number`, enlarged on each side by `margin` times its longer side.

        Raises:
            InputError: it was not found.
        """
        one = self[number]
        if not one.found:
            raise InputError(f"{one.phrase!r} was not found (confidence {one.score:.2f}), so there is no box to crop.")
        x0, y0, x1, y1 = one.box
        pad = margin * max(x1 - x0, y1 - y0)
        left = min(max(math.floor(x0 - pad), 0), self.image.width - 1)
        top = min(max(math.floor(y0 - pad), 0), self.image.height - 1)
        right = min(max(math.ceil(x1 + pad), left + 1), self.image.width)
        bottom = min(max(math.ceil(y1 + pad), top + 1), self.image.height)
        return self.image.crop((left, top, right, bottom))

    def to_supervision(self) -> Any:
        """Return what was found as `supervision.Detections`; the class of a box is the index of its phrase.

        Raises:
            MissingExtraError: supervision is not installed.
        """
        with optional_imports("to_supervision"):
            import supervision
        return supervision.Detections(
            xyxy=np.array([one.box for one in self.found], np.float32).reshape(-1, 4),
            confidence=np.array([one.score for one in self.found], np.float32),
            class_id=np.array([number for number, one in enumerate(self) if one.found], int),
            data={"class_name": np.array([one.phrase for one in self.found], dtype=str)},
        )

    def to_dict(self) -> dict[str, Any]:
        """Return image, width, height and results as plain values for JSON."""
        results = [one.to_dict() for one in self]
        return {"image": self.name, "width": self.size[0], "height": self.size[1], "results": results}


def to_coco(predictions: Predictions | Sequence[Predictions], root: Path | str | None = None) -> dict[str, Any]:
    """Convert what was found to a COCO-style object that `epmvg data convert` and `epmvg train` read.

    Args:
        predictions: of one image or several; each annotation has its phrase, and the score among its `attributes`.
        root: make file names relative to this folder, for example that of the JSON file; by default they stay as given.
    """
    images: dict[str, dict[str, Any]] = {}
    rows = []
    for given, own in _named(predictions):
        name = _relative(given, root)
        images[name] = {"image": name, "width": own.size[0], "height": own.size[1]}
        rows += [images[name] | {"phrase": one.phrase, "bbox": _xywh(one), "score": one.score} for one in own.found]
    coco = as_coco(rows)
    written = {image["file_name"] for image in coco["images"]}
    for name, image in images.items():
        if name not in written:  # nothing was found in it
            size = {"width": image["width"], "height": image["height"]}
            coco["images"].append({"id": len(coco["images"]) + 1, "file_name": name} | size)
    return coco


def to_label_studio(
    predictions: Predictions | Sequence[Predictions], prefix: str = "", root: Path | str | None = None
) -> list[dict[str, Any]]:
    """Convert what was found to pre-annotated tasks of Label Studio, for the labeling setup in docs/predict.md.

    Args:
        predictions: of one image or several.
        prefix: put before file names, for example "/data/local-files/?d="; if it starts with / or http, names are
            percent-encoded.
        root: as for `to_coco`.
    """
    is_url = prefix.startswith(("/", "http:", "https:"))
    encode = partial(quote, errors="surrogateescape") if is_url else str  # names may be of any bytes
    return [_task(own, prefix + encode(_relative(name, root))) for name, own in _named(predictions)]


def to_yolo(predictions: Predictions | Sequence[Predictions], root: Path | str | None = None) -> dict[str, str]:
    """Convert what was found to the text files of a YOLO data set, whose classes are the phrases.

    Args:
        predictions: of one image or several.
        root: labels of images in this folder lie in the same subfolders; by default the file name alone counts.

    Returns:
        Path -> content: `data.yaml` with the class names, and `labels/NAME.txt` for each image with a line per box:
        class, center and size as fractions of the image.

    Raises:
        InputError: the labels of two images would have one name.
    """
    names: dict[str, int] = {}
    files: dict[str, str] = {}
    for given, own in _named(predictions):
        name = PurePath((relative_to(Path(given), Path(root)) if root is not None else None) or PurePath(given).name)
        file = (PurePath("labels") / name.with_suffix(".txt")).as_posix()
        if file in files:
            raise InputError(f"YOLO names labels by images without suffix, and {file} is of two. Rename one of them.")
        (width, height), lines = own.size, []
        for one in own.found:
            x0, y0, x1, y1 = one.box
            box = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
            lines.append(" ".join([str(names.setdefault(one.phrase, len(names))), *(f"{part:.7f}" for part in box)]))
        files[file] = "".join(f"{line}\n" for line in lines)
    return files | {"data.yaml": yaml.safe_dump({"names": list(names)}, allow_unicode=True)}


def _task(predictions: Predictions, image: str) -> dict[str, Any]:
    """Return the task of an image: a rectangle per phrase, in percent of the image, and the phrase as its text."""
    width, height = predictions.size
    result = []
    for number, one in enumerate(predictions.found):
        x, y, w, h = _xywh(one)
        value = {"x": 100 * x / width, "y": 100 * y / height, "width": 100 * w / width, "height": 100 * h / height}
        value["rotation"] = 0
        region = {"id": f"phrase-{number}", "to_name": "image", "image_rotation": 0, "score": one.score}
        region |= {"original_width": width, "original_height": height}
        result.append(region | {"from_name": "box", "type": "rectangle", "value": value})
        result.append(region | {"from_name": "phrase", "type": "textarea", "value": value | {"text": [one.phrase]}})
    scores = [one.score for one in predictions.found]
    prediction = {"model_version": "epmvg", "score": min(scores, default=0.0), "result": result}
    return {"data": {"image": image}, "predictions": [prediction]}


def _named(predictions: Predictions | Sequence[Predictions]) -> list[tuple[str, Predictions]]:
    """Return the predictions of each image with its file name, or one made from its number."""
    several = [predictions] if isinstance(predictions, Predictions) else predictions
    return [(own.name or f"image-{number}", own) for number, own in enumerate(several, 1)]


def _relative(name: str, root: Path | str | None) -> str:
    if root is None:
        return name
    path = expand_home(name)
    return relative_to(path, Path(root)) or path.absolute().as_posix()


def _xywh(one: Prediction) -> list[float]:
    x0, y0, x1, y1 = one.box
    return [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)]
