"""What a data set asks, and which answer belongs to which question: each exactly once, or refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from epmvg.core.types import Box, InputError, Sample
from epmvg.data.readers.fields import four_numbers, short_repr
from epmvg.data.readers.files import read_json
from epmvg.evaluation.external.answers import Answer
from epmvg.evaluation.metrics import Targets

Words = tuple[tuple[str, ...], str]
"""The last parts of an image's path, and a phrase."""


@dataclass(frozen=True, slots=True)
class Question:
    """A phrase asked of an image, and the boxes that are its true answers."""

    record: Sample  # its box is the union of them
    boxes: tuple[Box, ...]

    @property
    def name(self) -> str:
        """What a message calls it."""
        who = f"id {short_repr(self.record.id)}, " if self.record.id else ""
        return f"{who}{short_repr(self.record.phrase)} of {self.record.image.name}"


def questions(records: Sequence[Sample], targets: Targets) -> list[Question]:
    """Turn the rows of a data set into questions: one each, or by phrase where `targets` is not "rows".

    A phrase's boxes are the row's `boxes` [x, y, w, h] (`flickr30k`), or the rows that share its image, phrase and id
    up to the number of the box (`flickr30k-all`).

    Raises:
        InputError: some of a phrase's `n_boxes` are not there.
    """
    if targets == "rows":
        return [Question(record, (record.box,)) for record in records]
    groups: dict[tuple[object, ...], list[Sample]] = {}
    for number, record in enumerate(records):
        base = _phrase_id(record)
        groups.setdefault((record.image, record.phrase, base) if base else (number,), []).append(record)
    return [_question(group) for group in groups.values()]


def _phrase_id(record: Sample) -> str:
    """Return a row's id without the number of its box."""
    base, _, number = record.id.rpartition("/")
    numbered = number.isdecimal() and "boxes" not in record.extra and record.extra.get("n_boxes", 1) != 1
    return base if numbered else record.id


def _question(rows: Sequence[Sample]) -> Question:
    first = rows[0]
    stated = first.extra.get("boxes")
    if len(rows) == 1 and isinstance(stated, list):
        found = [four_numbers(box) for box in stated]
        boxes = [(x, y, x + w, y + h) for x, y, w, h in (box for box in found if box is not None)]
    else:
        boxes = [row.box for row in rows]
    wanted = first.extra.get("n_boxes", len(stated) if isinstance(stated, list) else len(rows))
    if len(boxes) != wanted or not boxes:
        raise InputError(
            f"{Question(first, (first.box,)).name} has {short_repr(wanted)} boxes, but {len(boxes)} of them are here:"
            " take `flickr30k` or all rows of `flickr30k-all`, or score with --targets rows."
        )
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    union = (min(x0), min(y0), max(x1), max(y1))
    record = Sample(first.image, first.phrase, union, first.split, _phrase_id(first), first.size, first.extra)
    return Question(record, tuple(sorted(boxes)))


def match(asked: Sequence[Question], answers: Sequence[Answer], data: str) -> list[Answer | None]:
    """Return the answer to each question, None where there is none.

    Answers find their question by id, else by image and phrase. An image is known by its path's last parts, as many as
    tell the data's images apart.

    Raises:
        InputError: an answer belongs to no question, contradicts it, or is the second to it, or several answers
            to questions of the same words cannot be told apart.
    """
    book = _Book(asked, data)
    given: dict[int, Answer] = {}
    together: dict[tuple[int, ...], list[Answer]] = {}
    for answer in answers:
        together.setdefault(tuple(book.find(answer)), []).append(answer)
    for places, said in together.items():
        for place, answer in _deal(asked, places, said):
            if place in given:
                raise InputError(
                    f"{answer.where} answers {asked[place].name} again, after {given[place].where}: give one answer to"
                    " each row, the surest."
                )
            given[place] = answer
    return [given.get(place) for place in range(len(asked))]


def _deal(asked: Sequence[Question], places: tuple[int, ...], said: Sequence[Answer]) -> Iterable[tuple[int, Answer]]:
    """Pair answers with questions of the same words: by target, or in any way where all answers are alike."""
    if len(places) == 1:
        return [(places[0], answer) for answer in said]
    if len(said) > len(places):
        raise InputError(
            f"{said[len(places)].where} answers {asked[places[0]].name} once more than the data asks it"
            f" ({len(places)} times): give one answer to each row."
        )
    order = sorted(places, key=lambda place: asked[place].record.box)
    if all(answer.target is not None for answer in said):
        ranked = sorted(said, key=lambda answer: (answer.target, answer.numbers or ()))
        if len(said) == len(places) and all(
            answer.target == asked[place].record.box for place, answer in zip(order, ranked, strict=True)
        ):
            return list(zip(order, ranked, strict=True))
    if len({answer.numbers for answer in said}) > 1:
        raise InputError(
            f"{asked[places[0]].name} is asked {len(places)} times with other boxes and answered differently: give"
            ' each answer the "id" of its row.'
        )
    return list(zip(order, said, strict=False))


def _plain(phrase: str) -> str:
    """Return a phrase as systems may repeat it: other letter case and spaces are no other phrase."""
    return " ".join(phrase.casefold().split())


class _Book:
    """Questions by id and by words."""

    def __init__(self, asked: Sequence[Question], data: str) -> None:
        self.asked, self.data = asked, data
        images = {question.record.image for question in asked}
        self.depth = next(
            depth for depth in range(1, 1000) if len({image.parts[-depth:] for image in images}) == len(images)
        )
        self.by_id: dict[str, list[int]] = {}
        self.by_words: dict[Words, list[int]] = {}
        self.by_like_words: dict[Words, list[int]] = {}
        for place, question in enumerate(asked):
            self.by_id.setdefault(question.record.id or str(question.record.extra.get("ann_id", "")), []).append(place)
            image, phrase = self._tail(question.record.image), question.record.phrase
            self.by_words.setdefault((image, phrase), []).append(place)
            self.by_like_words.setdefault((image, _plain(phrase)), []).append(place)
        self.by_id.pop("", None)
        self.numbered = _numbered_images(asked, data)

    def _tail(self, image: PurePath) -> tuple[str, ...]:
        return image.parts[-self.depth :]

    def find(self, answer: Answer) -> list[int]:
        """Return the questions that an answer may belong to.

        Raises:
            InputError: none, or those of its id have other words.
        """
        image = self._image(answer)
        if answer.id and self.by_id:
            if answer.id not in self.by_id:
                raise InputError(
                    f"{answer.where} answers id {short_repr(answer.id)}, which {self.data} does not have: score it on"
                    " the data and split it was made for."
                )
            places = [place for place in self.by_id[answer.id] if self._agrees(answer, image, place)]
            if not places:
                raise InputError(
                    f"{answer.where} has the id of {self.asked[self.by_id[answer.id][0]].name} but names another"
                    " phrase or image: score it on the data it was made for."
                )
            return places
        if image is None or answer.phrase is None:
            raise InputError(f'{answer.where}: {self.data} has no ids: give each answer its "image" and "phrase".')
        exact = self.by_words.get((image, answer.phrase), [])
        places = exact or self.by_like_words.get((image, _plain(answer.phrase)), [])
        if not places:
            raise InputError(
                f"{answer.where} answers {short_repr(answer.phrase)} of {'/'.join(image)}, which {self.data} does not"
                " ask: score it on the data and split it was made for."
            )
        return places

    def _agrees(self, answer: Answer, image: tuple[str, ...] | None, place: int) -> bool:
        record = self.asked[place].record
        same = answer.phrase is None or _plain(answer.phrase) == _plain(record.phrase)
        return same and image in (None, self._tail(record.image))

    def _image(self, answer: Answer) -> tuple[str, ...] | None:
        if answer.image is not None:
            return self._tail(PurePath(answer.image))
        if answer.image_id is None or (answer.id and not self.numbered):
            return None
        if answer.image_id not in self.numbered:
            raise InputError(
                f"{answer.where}: image_id {short_repr(answer.image_id)} names no image of {self.data}: give the file's"
                ' name as "image", or the row\'s "id".'
            )
        return self._tail(self.numbered[answer.image_id])


def _numbered_images(asked: Sequence[Question], data: str) -> dict[int, PurePath]:
    """Return images by number: as the rows state it, or a COCO file's list of images."""
    stated = {question.record.extra.get("image_id"): question.record.image for question in asked}
    numbered: dict[int, PurePath] = {number: image for number, image in stated.items() if type(number) is int}
    if not numbered and data.endswith(".json"):
        content = read_json(Path(data))
        images = content.get("images") if isinstance(content, dict) else None
        for image in images if isinstance(images, list) else []:
            if isinstance(image, dict) and type(image.get("id")) is int and isinstance(image.get("file_name"), str):
                numbered[image["id"]] = PurePath(image["file_name"])
    return numbered
