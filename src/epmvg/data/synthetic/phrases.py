"""Phrases and captions of a synthetic scene: each phrase is true of exactly one object, by a clear margin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from epmvg.core.types import Box
from epmvg.data.synthetic.sprite_library import CLOSE_COLORS

SIZE_RATIO = 1.35
"""Ratio of longer sides from which people agree which of two objects is bigger."""

PLACE_MARGIN = 0.14
"""Least distance of two centers, as a fraction of the image's width or height, for a phrase about their places."""


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object of a scene; `box` is xyxy in pixels."""

    name: str
    color: str | None
    box: Box

    @property
    def center(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def length(self) -> float:
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])


@dataclass(frozen=True, slots=True)
class Phrase:
    """A phrase, its kind (name, color, size, place, relation) and the number of its object."""

    text: str
    kind: str
    target: int


def phrases_of(objects: Sequence[SceneObject], size: tuple[int, int]) -> list[Phrase]:
    """Return every phrase that is true of exactly one object in an image of (width, height)."""
    phrases = []
    for number, target in enumerate(objects):
        same = [other for i, other in enumerate(objects) if other.name == target.name and i != number]
        by_kind: dict[str, Iterable[str]] = {
            "name": [] if same else [f"the {target.name}"],
            "color": _by_color(target, same),
            "size": _by_size(target, same),
            "place": _by_place(target, same, size),
            "relation": _by_relation(target, same, objects, size),
        }
        phrases += [Phrase(text, kind, number) for kind, texts in by_kind.items() for text in texts]
    return phrases


def _by_color(target: SceneObject, same: Sequence[SceneObject]) -> Iterator[str]:
    if target.color is None:
        return
    for other in same:
        pair = frozenset((target.color, other.color))
        if other.color is None or len(pair) == 1 or pair in CLOSE_COLORS:
            return
    yield f"the {target.color} {target.name}"


def _by_size(target: SceneObject, same: Sequence[SceneObject]) -> Iterator[str]:
    if not same:
        return
    ending = "est" if len(same) > 1 else "er"
    if all(other.length >= SIZE_RATIO * target.length for other in same):
        yield f"the small{ending} {target.name}"
    if all(target.length >= SIZE_RATIO * other.length for other in same):
        yield f"the bigg{ending} {target.name}"


def _by_place(target: SceneObject, same: Sequence[SceneObject], size: tuple[int, int]) -> Iterator[str]:
    if not same:
        return
    several, name = len(same) > 1, target.name
    texts = (
        (0, -1, f"the leftmost {name}" if several else f"the {name} on the left"),
        (0, 1, f"the rightmost {name}" if several else f"the {name} on the right"),
        (1, -1, f"the topmost {name}" if several else f"the upper {name}"),
        (1, 1, f"the bottommost {name}" if several else f"the lower {name}"),
    )
    for axis, sign, text in texts:
        if all(sign * (target.center[axis] - o.center[axis]) >= PLACE_MARGIN * size[axis] for o in same):
            yield text


def _by_relation(
    target: SceneObject, same: Sequence[SceneObject], objects: Sequence[SceneObject], size: tuple[int, int]
) -> Iterator[str]:
    """Relate an object to those whose name is unique in the scene."""
    names = [other.name for other in objects]
    relations = ((0, -1, "to the left of"), (0, 1, "to the right of"), (1, -1, "above"), (1, 1, "below"))
    for anchor in objects:
        if anchor.name == target.name or names.count(anchor.name) > 1:
            continue
        for axis, sign, words in relations:
            margin = PLACE_MARGIN * size[axis]
            along, across = (target.center[i] - anchor.center[i] for i in (axis, 1 - axis))
            is_true = sign * along >= margin and abs(along) >= abs(across)
            if is_true and all(-sign * (o.center[axis] - anchor.center[axis]) >= margin for o in same):
                yield f"the {target.name} {words} the {anchor.name}"


def captions_of(objects: Sequence[SceneObject], size: tuple[int, int], order: Sequence[int]) -> list[str]:
    """Return two captions: the objects in `order`, a permutation of them, and how two of them are placed."""
    names = [_with_article(objects[i]) for i in order]
    captions = [f"a picture of {', '.join(names[:-1])} and {names[-1]}"]
    related = [phrase for phrase in phrases_of(objects, size) if phrase.kind == "relation"]
    if related:
        chosen = min(related, key=lambda phrase: order.index(phrase.target))
        subject = objects[chosen.target]
        relation, _, anchor = chosen.text.removeprefix(f"the {subject.name} ").rpartition(" the ")
        captions.append(f"{_with_article(subject)} {relation} {_article(anchor)}")
    return captions


def sentence_of(objects: Sequence[SceneObject], size: tuple[int, int], random: np.random.Generator) -> str:
    """Return a caption, or one to three phrases of different kinds, of a scene in an image of (width, height)."""
    phrases = phrases_of(objects, size)
    if not phrases or (len(objects) > 1 and random.random() < 0.5):
        return str(random.choice(captions_of(objects, size, random.permutation(len(objects)).tolist())))
    kinds = random.permutation(sorted({phrase.kind for phrase in phrases}))[: random.integers(1, 4)]
    return ", ".join(str(random.choice([each.text for each in phrases if each.kind == kind])) for kind in kinds)


def _with_article(item: SceneObject) -> str:
    return _article(f"{item.color} {item.name}" if item.color else item.name)


def _article(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeio' else 'a'} {noun}"
