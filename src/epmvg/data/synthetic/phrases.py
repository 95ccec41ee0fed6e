"""Phrases about a drawn scene that are true and mean exactly one object, with room for disagreement.

A phrase is only said if it holds for its object by a clear margin and fails for every other object of the same name
by a clear margin too: two cats hardly differ in size -> nobody speaks of "the smaller cat".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from epmvg.core.types import Box
from epmvg.data.synthetic.sprite_library import CLOSE_COLOURS

SIZE_RATIO = 1.35
"""Of the longer sides: from here on people agree which of two things is bigger."""

PLACE_MARGIN = 0.14
"""Of the picture's width or height, between centres."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One object of a scene; `box` in pixels."""

    name: str
    colour: str | None
    box: Box

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def length(self) -> float:
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])


@dataclass(frozen=True, slots=True)
class Phrase:
    """What is said, in which way (name, colour, size, place, relation), of which object."""

    text: str
    kind: str
    target: int


def phrases_of(things: Sequence[Thing], size: tuple[int, int]) -> list[Phrase]:
    """Return every phrase that is true of exactly one object in a picture of (width, height)."""
    found = []
    for number, thing in enumerate(things):
        same = [other for i, other in enumerate(things) if other.name == thing.name and i != number]
        says: list[tuple[str, Iterable[str]]] = [("name", [] if same else [f"the {thing.name}"])]
        says += [("colour", _by_colour(thing, same)), ("size", _by_size(thing, same))]
        says += [("place", _by_place(thing, same, size)), ("relation", _by_relation(thing, same, things, size))]
        found += [Phrase(text, kind, number) for kind, texts in says for text in texts]
    return found


def _by_colour(thing: Thing, same: Sequence[Thing]) -> Iterator[str]:
    if thing.colour is None:
        return
    for other in same:
        pair = frozenset((thing.colour, other.colour))
        if other.colour is None or len(pair) == 1 or pair in CLOSE_COLOURS:
            return
    yield f"the {thing.colour} {thing.name}"


def _by_size(thing: Thing, same: Sequence[Thing]) -> Iterator[str]:
    if not same:
        return
    several = len(same) > 1
    if all(other.length >= SIZE_RATIO * thing.length for other in same):
        yield f"the {'smallest' if several else 'smaller'} {thing.name}"
    if all(thing.length >= SIZE_RATIO * other.length for other in same):
        yield f"the {'biggest' if several else 'bigger'} {thing.name}"


def _by_place(thing: Thing, same: Sequence[Thing], size: tuple[int, int]) -> Iterator[str]:
    if not same:
        return
    several = len(same) > 1
    words = (
        (0, -1, f"the leftmost {thing.name}" if several else f"the {thing.name} on the left"),
        (0, 1, f"the rightmost {thing.name}" if several else f"the {thing.name} on the right"),
        (1, -1, f"the topmost {thing.name}" if several else f"the upper {thing.name}"),
        (1, 1, f"the bottommost {thing.name}" if several else f"the lower {thing.name}"),
    )
    for axis, side, text in words:
        margin = PLACE_MARGIN * size[axis]
        if all(side * (thing.centre[axis] - other.centre[axis]) >= margin for other in same):
            yield text


def _by_relation(thing: Thing, same: Sequence[Thing], things: Sequence[Thing], size: tuple[int, int]) -> Iterator[str]:
    """Relate an object to one whose name stands alone in the scene."""
    names = [other.name for other in things]
    for anchor in things:
        if anchor.name == thing.name or names.count(anchor.name) > 1:
            continue
        for axis, side, words in ((0, -1, "left of"), (0, 1, "right of"), (1, -1, "above"), (1, 1, "below")):
            margin = PLACE_MARGIN * size[axis]
            along, across = (thing.centre[i] - anchor.centre[i] for i in (axis, 1 - axis))
            holds = side * along >= margin and abs(along) >= abs(across)
            fails = all(-side * (other.centre[axis] - anchor.centre[axis]) >= margin for other in same)
            if holds and fails:
                where = f"to the {words}" if axis == 0 else words
                yield f"the {thing.name} {where} the {anchor.name}"


def captions_of(things: Sequence[Thing], size: tuple[int, int], order: Sequence[int]) -> list[str]:
    """Describe a scene in two sentences: what is there, and how two of the things lie.

    `order` is the order of telling, a permutation of the things.
    """
    told = [things[i] for i in order]
    names = [_with_article(thing) for thing in told]
    listed = ", ".join(names[:-1]) + f" and {names[-1]}"
    captions = [f"a picture of {listed}"]
    related = [phrase for phrase in phrases_of(things, size) if phrase.kind == "relation"]
    if related:
        chosen = min(related, key=lambda phrase: order.index(phrase.target))
        subject = things[chosen.target]
        relation, _, anchor = chosen.text.removeprefix(f"the {subject.name} ").rpartition(" the ")
        captions.append(f"{_with_article(subject)} {relation} {_article(anchor)}")
    return captions


def _with_article(thing: Thing) -> str:
    return _article(f"{thing.colour} {thing.name}" if thing.colour else thing.name)


def _article(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeio' else 'a'} {noun}"
