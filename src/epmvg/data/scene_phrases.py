"""What is said about a drawn scene, and whether it is true and unmistakable.

A phrase is a small structure (`Ask`). `refers` judges each part of it with three answers: holds, does not hold,
doubtful (closer than a margin), and a phrase is used only if it holds for one thing and surely not for any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from epmvg.data.scene_sprites import CLOSE_COLOURS, load_sprites
from epmvg.types import Box

SIZE_RATIO = 1.35  # of the square roots of the box areas: smaller differences are not told apart at a glance
PLACE_MARGIN = 0.12  # of the picture's width or height, between the centres of "leftmost" and the next
HALF_MARGIN = 0.08  # "on the left" ends this far left of the middle
CORNER = 0.36  # a thing in a corner has its centre within this share of both sides
ANY = "thing"

_SIZES = {"smaller": -1, "smallest": -1, "bigger": 1, "biggest": 1}
_ENDS = {"leftmost": (0, -1), "rightmost": (0, 1), "topmost": (1, -1), "bottommost": (1, 1)}
_HALVES = {"on the left": (0, -1), "on the right": (0, 1), "at the top": (1, -1), "at the bottom": (1, 1)}
_CORNERS = {f"in the {row} {column} corner": (column, row) for row in ("top", "bottom") for column in ("left", "right")}
_SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven")

Size = tuple[int, int]
Verdict = bool | None  # None: doubtful


@dataclass(frozen=True, slots=True)
class Thing:
    """One object of a scene; `colour` is None where no single word is right."""

    name: str
    colour: str | None
    box: Box  # (x0, y0, x1, y1) in pixels

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def extent(self) -> float:
        """Square root of the box's area."""
        return float(((self.box[2] - self.box[0]) * (self.box[3] - self.box[1])) ** 0.5)


@dataclass(frozen=True, slots=True)
class Ask:
    """The structure of a phrase: `noun` is a sprite's name or "thing"; `side` says where it lies from `landmark`."""

    noun: str
    colour: str | None = None
    size: str | None = None
    place: str | None = None
    side: str | None = None
    landmark: Ask | None = None

    @property
    def kind(self) -> str:
        for part in ("relation" if self.side else "", "size" if self.size else "", "place" if self.place else ""):
            if part:
                return part
        return "colour" if self.colour else "name"

    def __str__(self) -> str:
        before = [word for word in (self.size, self.place if self.place in _ENDS else None, self.colour) if word]
        words = ["the", *before, self.noun]
        if self.place and self.place not in _ENDS:
            words.append(self.place)
        if self.side:
            words += [self.side, str(self.landmark)]
        return " ".join(words)


def refers(ask: Ask, things: Sequence[Thing], size: Size) -> int | None:
    """Return the index of the one thing that a phrase means.

    Args:
        ask: the phrase.
        things: all objects of the scene.
        size: (width, height) of the picture.

    Returns:
        None where the phrase fits no thing, several, or any of them only doubtfully.
    """
    candidates = [i for i, thing in enumerate(things) if ask.noun in (thing.name, ANY)]
    for judge in _judges(ask, things, size):
        verdicts = [judge(i, candidates) for i in candidates]
        if None in verdicts:
            return None
        candidates = [i for i, verdict in zip(candidates, verdicts, strict=True) if verdict]
    return candidates[0] if len(candidates) == 1 else None


def _judges(ask: Ask, things: Sequence[Thing], size: Size) -> Iterator[Callable[[int, list[int]], Verdict]]:
    """Yield one judge for each part of the phrase: (index, candidates so far) -> verdict."""
    if colour := ask.colour:
        yield lambda i, _: _has_colour(things[i], colour)
    if word := ask.size:
        yield lambda i, among: _is_extreme_size(things, i, among, word)
    if place := ask.place:
        if place in _ENDS:
            yield lambda i, among: _is_at_end(things, i, among, place, size)
        else:
            yield lambda i, _: _is_in(things[i], place, size)
    if ask.side and ask.landmark:
        side, mark = ask.side, refers(ask.landmark, things, size)
        yield lambda i, _: None if mark is None else i != mark and _lies(things[i], things[mark], side)


def _has_colour(thing: Thing, colour: str) -> Verdict:
    if thing.colour == colour:
        return True
    return None if thing.colour is None or frozenset((thing.colour, colour)) in CLOSE_COLOURS else False


def _is_extreme_size(things: Sequence[Thing], i: int, among: list[int], word: str) -> Verdict:
    if (len(among) == 2) != word.endswith("er"):  # of two one is smaller, of more one is the smallest
        return None
    ratios = [(things[i].extent / things[j].extent) ** _SIZES[word] for j in among if j != i]
    if min(ratios) >= SIZE_RATIO:
        return True
    return False if min(ratios) <= 1 / SIZE_RATIO else None


def _is_at_end(things: Sequence[Thing], i: int, among: list[int], word: str, size: Size) -> Verdict:
    axis, sign = _ENDS[word]
    edge = axis + (2 if sign > 0 else 0)

    def beyond(a: Thing, b: Thing) -> bool:
        further = sign * (a.centre[axis] - b.centre[axis]) >= PLACE_MARGIN * size[axis]
        return further and sign * (a.box[edge] - b.box[edge]) > 0

    others = [things[j] for j in among if j != i]
    if len(others) == 0 or all(beyond(things[i], other) for other in others):
        return True if others else None
    return False if any(beyond(other, things[i]) for other in others) else None


def _is_in(thing: Thing, place: str, size: Size) -> Verdict:
    share = thing.centre[0] / size[0], thing.centre[1] / size[1]
    if place in _HALVES:
        axis, sign = _HALVES[place]
        offset = sign * (share[axis] - 0.5)
        return True if offset >= HALF_MARGIN else False if offset <= -HALF_MARGIN else None
    column, row = _CORNERS[place]
    inward = max(1 - share[0] if column == "right" else share[0], 1 - share[1] if row == "bottom" else share[1])
    return True if inward <= CORNER else False if inward >= 0.5 else None


def _lies(thing: Thing, mark: Thing, side: str) -> Verdict:
    """True: wholly on that side, and more so than across it. False: its centre is on the other side."""
    axis, sign = _SIDES[side]
    along, across = (sign * (thing.centre[axis] - mark.centre[axis]), abs(thing.centre[1 - axis] - mark.centre[1 - axis]))
    gap = thing.box[axis] - mark.box[axis + 2] if sign > 0 else mark.box[axis] - thing.box[axis + 2]
    if gap >= 0 and along >= across:
        return True
    return False if along <= 0 else None


def choose_phrases(
    things: Sequence[Thing],
    size: Size,
    random: np.random.Generator,
    *,
    count: int = 5,
    targets: Sequence[str] | None = None,
) -> list[tuple[Ask, int]]:
    """Choose about `count` true and unmistakable phrases, at most two a thing, kinds in turn.

    Args:
        things: all objects of the scene.
        size: (width, height) of the picture.
        random: the scene's source of chance.
        count: the most phrases.
        targets: names that may be asked for; None allows all, and "the thing left of ..." too.

    Returns:
        (phrase, index of its thing).
    """
    by_kind: dict[str, list[tuple[Ask, int]]] = {}
    for i, thing in enumerate(things):
        if targets is None or thing.name in targets:
            for ask in dict.fromkeys(_asks(i, things, size, random, any_noun=targets is None)):
                if refers(ask, things, size) == i:
                    by_kind.setdefault(ask.kind, []).append((ask, i))
    queues = [_shuffled(by_kind[kind], random) for kind in _shuffled(sorted(by_kind), random)]
    chosen: list[tuple[Ask, int]] = []
    while len(chosen) < count and any(queues):
        for queue in queues:
            while queue:
                ask, i = queue.pop()
                if sum(i == other for _, other in chosen) < 2 and _adds(ask, chosen):
                    chosen.append((ask, i))
                    break
    return chosen[:count]


def _adds(ask: Ask, chosen: list[tuple[Ask, int]]) -> bool:
    """One phrase about a nameless thing is enough for a scene."""
    return ask.noun != ANY or all(other.noun != ANY for other, _ in chosen)


def _shuffled[T](items: Sequence[T], random: np.random.Generator) -> list[T]:
    return [items[int(i)] for i in random.permutation(len(items))]


def _asks(i: int, things: Sequence[Thing], size: Size, random: np.random.Generator, *, any_noun: bool) -> Iterator[Ask]:
    """Yield phrases that may mean thing `i`; each is yet to be judged."""
    thing = things[i]
    places = (*_ENDS, *_HALVES, *_CORNERS)
    if sum(thing.name == other.name for other in things) == 1:
        yield Ask(thing.name)
    else:
        if thing.colour:
            yield Ask(thing.name, thing.colour)
        yield from (Ask(thing.name, size=word) for word in _SIZES)
        yield from (Ask(thing.name, place=word) for word in places)
    if any_noun:
        yield from (Ask(ANY, place=word) for word in (*_ENDS, *_CORNERS))
    for j, mark in enumerate(things):
        if j == i or not (landmark := _landmark(j, things, size, random)):
            continue
        for side in _SIDES:
            if _lies(thing, mark, side):
                yield Ask(thing.name, side=side, landmark=landmark)
                if any_noun:
                    yield Ask(ANY, side=side, landmark=landmark)


def _landmark(j: int, things: Sequence[Thing], size: Size, random: np.random.Generator) -> Ask | None:
    """The shortest name that means thing `j`, now and then with its colour."""
    thing = things[j]
    plain, coloured = Ask(thing.name), Ask(thing.name, thing.colour)
    if refers(plain, things, size) == j:
        return coloured if thing.colour and random.random() < 0.4 else plain
    return coloured if thing.colour and refers(coloured, things, size) == j else None


def write_captions(things: Sequence[Thing], size: Size, random: np.random.Generator) -> list[str]:
    """Describe a scene in one or two sentences, as a CLIP-style teacher reads them."""
    listed = _join([_several(name, things, size, random) for name in dict.fromkeys(_shuffled([t.name for t in things], random))])
    relations = _shuffled(list(_relations(things, size, random)), random)
    captions = [f"{listed}; {relations[0][0]}" if relations and random.random() < 0.6 else listed]
    if relations and random.random() < 0.5:
        captions.append(relations[-1][1])
    return captions


def _several(name: str, things: Sequence[Thing], size: Size, random: np.random.Generator) -> str:
    """Say all things of a name: "a small blue car", "a red car and a green car" or "two cars"."""
    alike = [thing for thing in things if thing.name == name]
    colours = [thing.colour for thing in alike]
    if len(alike) == 1 or (len(set(colours)) == len(alike) and None not in colours):
        return _join([_one(thing, size, random) for thing in alike])
    return f"{_NUMBERS[len(alike)]} {load_sprites()[name].plural}"


def _one(thing: Thing, size: Size, random: np.random.Generator) -> str:
    share = thing.extent / max(size)
    scale = "small" if share <= 0.17 else "big" if share >= 0.3 else None
    return _with_article([word for word in (scale if random.random() < 0.5 else None, thing.colour, thing.name) if word])


def _relations(things: Sequence[Thing], size: Size, random: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Yield true relations of things that can be named: as a clause and as a sentence of its own."""
    marks = [_landmark(i, things, size, random) for i in range(len(things))]
    for i, (thing, one) in enumerate(zip(things, marks, strict=True)):
        for j, (mark, other) in enumerate(zip(things, marks, strict=True)):
            if i == j or one is None or other is None:
                continue
            for side in _SIDES:
                if _lies(thing, mark, side):
                    nouns = [_with_article([word for word in (ask.colour, ask.noun) if word]) for ask in (one, other)]
                    yield f"{one} is {side} {other}", f"{nouns[0]} {side} {nouns[1]}"


def _with_article(words: list[str]) -> str:
    vowel = words[0][0] in "aeiou" and words[0] != "unicorn" or words[0] == "hourglass"
    return " ".join(["an" if vowel else "a", *words])


def _join(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
