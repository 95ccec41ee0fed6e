"""The model behind the server: questions of several requests asked in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from PIL import Image

from epmvg.core.types import Prediction
from epmvg.serve.batching import Outcome, Waiting
from epmvg.serve.pictures import Picture


class Ground(Protocol):
    """What the server needs of a `Predictor`."""

    @property
    def image_size(self) -> int: ...

    @property
    def threshold(self) -> float | None: ...

    @property
    def domain(self) -> str | None: ...

    def predict_batch(
        self,
        questions: Sequence[tuple[Image.Image, list[str]]],
        keys: Sequence[bytes],
        sizes: Sequence[tuple[int, int]],
    ) -> Sequence[Sequence[Prediction]]: ...


def answer(ground: Ground, batch: Sequence[Waiting]) -> list[Outcome]:
    """Answer questions of several requests in one pass, each picture encoded and each of its phrases asked once."""
    pictures: dict[bytes, Picture] = {}
    phrases: dict[bytes, dict[str, None]] = {}  # a set that keeps its order
    for waiting in batch:
        digest = waiting.picture.digest
        pictures[digest] = waiting.picture
        phrases.setdefault(digest, {}).update(dict.fromkeys(waiting.phrases))
    try:
        asked = [(picture.image, list(phrases[digest])) for digest, picture in pictures.items()]
        answers = ground.predict_batch(asked, list(pictures), [picture.size for picture in pictures.values()])
    except Exception as error:  # one request's must not be the others'
        return [error] if len(batch) == 1 else [answer(ground, [waiting])[0] for waiting in batch]
    found = {
        digest: {one.phrase: one for one in predictions} for digest, predictions in zip(pictures, answers, strict=True)
    }
    return [[found[waiting.picture.digest][phrase] for phrase in waiting.phrases] for waiting in batch]
