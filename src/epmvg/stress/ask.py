"""Asks a run the same questions made harder, a photo at a time: every phrase stress of a photo costs one encoding."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from epmvg.data.photos import Photo, open_image
from epmvg.evaluation import Row, overlaps
from epmvg.predict import Predictor
from epmvg.stress.kind import PictureStress, generator
from epmvg.stress.phrases import PHRASE_STRESSES
from epmvg.stress.pictures import PICTURE_STRESSES
from epmvg.types import Record

CLEAN, ABSENT = "clean", "absent"
TOGETHER = 64  # phrases of one forward pass

Answer = tuple[list[float], float]
"""A box in pixels of the upright photo, and its score."""


def ask(predictor: Predictor, records: Sequence[Record], absent: Sequence[Record], seed: int) -> Iterator[Row]:
    """Ask about one photo: as it is, under each stress, and for what is not there.

    Args:
        predictor: of the run.
        records: all rows of one photo.
        absent: phrases that name nothing in that photo.
        seed: of everything drawn.

    Yields:
        A row of predictions for each question, with `stress`, its name; `asked`, the phrase as it was said; `cut`, true
        where that is longer than the model reads; and `agreement`, the IoU with the answer to the clean question.
    """
    photo = records[0].image
    picture = open_image(photo)
    phrases = [record.phrase for record in records]
    clean = list(zip(*predictor.find(picture, phrases), strict=True))
    yield from _rows(predictor, CLEAN, records, phrases, clean, clean)
    said: list[tuple[str, int, str]] = [
        (stress.name, number, made)
        for stress in PHRASE_STRESSES
        for number, phrase in enumerate(phrases)
        if (made := stress.change(phrase, generator(seed, stress.name, phrase))) not in (None, phrase)
    ]
    answers = _answers(predictor, picture, [*(asked for _, _, asked in said), *(one.phrase for one in absent)])
    for name, number, asked in said:
        own = slice(number, number + 1)
        yield from _rows(predictor, name, records[own], [asked], [answers[asked]], clean[own])
    for record in absent:
        answer = [answers[record.phrase]]
        yield from _rows(predictor, ABSENT, [record], [record.phrase], answer, answer)
    for stress in PICTURE_STRESSES:
        changed = change_picture(stress, photo, picture, seed)
        if changed is not None:
            found = zip(*predictor.find(changed, phrases), strict=True)
            moved = [(_moved(box, _size(changed), picture.size), score) for box, score in found]
            yield from _rows(predictor, stress.name, records, phrases, moved, clean)


def change_picture(stress: PictureStress, photo: Path, picture: Image.Image, seed: int) -> Image.Image | bytes | None:
    """Put an opened photo under a stress, the same way at every call."""
    return stress.change(picture, generator(seed, stress.name, photo.name))


def _answers(predictor: Predictor, picture: Image.Image, asked: Sequence[str]) -> dict[str, Answer]:
    """Answer each different phrase once; those of like length together, since all are padded to the longest."""
    different = sorted(set(asked), key=lambda phrase: (len(phrase), phrase))
    found: dict[str, Answer] = {}
    for start in range(0, len(different), TOGETHER):
        part = different[start : start + TOGETHER]
        found |= zip(part, zip(*predictor.find(picture, part), strict=True), strict=True)
    return found


def _rows(
    predictor: Predictor,
    stress: str,
    records: Sequence[Record],
    asked: Sequence[str],
    answers: Sequence[Answer],
    clean: Sequence[Answer],
) -> Iterator[Row]:
    cut = predictor.backend.tokenizer(asked).cut.tolist()
    boxes, before = ([box for box, _ in each] for each in (answers, clean))
    ious, agreements = overlaps(boxes, [record.box for record in records]), overlaps(boxes, before)
    for number, (record, phrase, (box, score)) in enumerate(zip(records, asked, answers, strict=True)):
        yield {
            "stress": stress,
            "image": str(record.image),
            "phrase": record.phrase,
            "asked": phrase,
            "cut": cut[number],
            "box": [round(edge, 3) for edge in box],
            "target": list(record.box),
            "iou": ious[number],
            "score": score,
            "agreement": 1.0 if box == before[number] else agreements[number],  # an empty box is also its own like
            "id": record.id,
        }


def _size(picture: Image.Image | bytes) -> tuple[int, int]:
    if isinstance(picture, bytes):
        with Photo(io.BytesIO(picture)) as opened:
            return opened.size
    return picture.size


def _moved(box: Sequence[float], size: tuple[int, int], original: tuple[int, int]) -> list[float]:
    """Take a box from a scaled picture to the original."""
    if size == original:
        return list(box)
    return [value * original[i % 2] / size[i % 2] for i, value in enumerate(box)]
