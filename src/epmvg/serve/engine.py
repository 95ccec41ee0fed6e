"""The model behind the server: pictures decoded once and kept, questions of several requests asked in one pass."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Protocol

from PIL import Image

from epmvg.serve.batching import Outcome, Waiting
from epmvg.serve.intake import Picture, decode
from epmvg.serve.limits import Limits
from epmvg.types import Prediction


class Ground(Protocol):
    """What a `Predictor` is to this room."""

    def ask(
        self, questions: Sequence[tuple[Image.Image, list[str]]], keys: Sequence[bytes]
    ) -> Sequence[Sequence[Prediction]]: ...


class Pictures:
    """Decoded pictures, the latest kept within `limits.kept` bytes; several threads may ask."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._kept: OrderedDict[bytes, Picture] = OrderedDict()
        self._size = 0
        self._lock = Lock()

    def open(self, image: bytes) -> tuple[Picture, bool]:
        """Decode a picture, or find it among those kept; say which (True: found).

        Raises:
            RefusalError: 422, it is no picture that is served.
        """
        digest = hashlib.sha256(image).digest()
        with self._lock:
            if digest in self._kept:
                self._kept.move_to_end(digest)
                return self._kept[digest], True
        picture = Picture(digest, decode(image, self._limits))
        with self._lock:
            if digest not in self._kept and _bytes(picture) <= self._limits.kept:
                self._kept[digest] = picture
                self._size += _bytes(picture)
            while self._size > self._limits.kept:
                self._size -= _bytes(self._kept.popitem(last=False)[1])
        return picture, False


def answer(ground: Ground, batch: Sequence[Waiting]) -> list[Outcome]:
    """Answer questions of several requests in one pass, each picture encoded and each of its phrases asked once."""
    pictures: dict[bytes, Image.Image] = {}
    phrases: dict[bytes, dict[str, None]] = {}  # a set that keeps its order
    for waiting in batch:
        digest = waiting.picture.digest
        pictures[digest] = waiting.picture.image
        phrases.setdefault(digest, {}).update(dict.fromkeys(waiting.phrases))
    try:
        asked = [(image, list(phrases[digest])) for digest, image in pictures.items()]
        answers = ground.ask(asked, list(pictures))
    except Exception as error:  # one request's must not be the others'
        return [error] if len(batch) == 1 else [answer(ground, [waiting])[0] for waiting in batch]
    found = {
        digest: {one.phrase: one for one in predictions} for digest, predictions in zip(pictures, answers, strict=True)
    }
    return [[found[waiting.picture.digest][phrase] for phrase in waiting.phrases] for waiting in batch]


def _bytes(picture: Picture) -> int:
    return 3 * picture.image.width * picture.image.height
