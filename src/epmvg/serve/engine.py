"""The model behind the server: pictures decoded once and kept, questions about one picture asked in one pass."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock

from PIL import Image

from epmvg.serve.batching import Outcome, Waiting
from epmvg.serve.intake import Picture, decode
from epmvg.serve.limits import Limits
from epmvg.types import InputError, Prediction

Ground = Callable[[Image.Image, list[str]], list[Prediction]]
"""What a `Predictor` is to this room."""


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
    """Answer questions of several requests; those about one picture share one pass, and its encoding."""
    shared: dict[bytes, list[int]] = {}
    for number, waiting in enumerate(batch):
        shared.setdefault(waiting.picture.digest, []).append(number)
    outcomes: dict[int, Outcome] = {}
    for numbers in shared.values():
        outcomes |= zip(numbers, _answer_one_picture(ground, [batch[number] for number in numbers]), strict=True)
    return [outcomes[number] for number in range(len(batch))]


def _answer_one_picture(ground: Ground, batch: Sequence[Waiting]) -> list[Outcome]:
    phrases = list(dict.fromkeys(phrase for waiting in batch for phrase in waiting.phrases))
    try:
        found = dict(zip(phrases, ground(batch[0].picture.image, phrases), strict=True))
    except InputError as error:  # one request's phrase must not spoil the others'
        if len(batch) == 1:
            return [error]
        return [_answer_one_picture(ground, [waiting])[0] for waiting in batch]
    except Exception as error:
        return [error] * len(batch)
    return [[found[phrase] for phrase in waiting.phrases] for waiting in batch]


def _bytes(picture: Picture) -> int:
    return 3 * picture.image.width * picture.image.height
