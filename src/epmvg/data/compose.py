"""Referring expressions composed from the sentences, chains and boxes of Flickr30k Entities.

A phrase of Flickr30k Entities names a kind of thing ("a man"); a referring expression of RefCOCO tells one of a kind
from the others ("guy in the blue shirt", "second horse from left"). The annotations hold what that needs:

- *spans*: "X wearing Y" of one sentence, for the single box of X;
- *positions*: "left KIND", "KIND in the middle", among two to five clearly separated boxes of one kind;
- *sizes*: "biggest KIND", where one box of a kind is clearly larger than all others.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal
from zlib import crc32

import numpy as np

from epmvg.core.boxes import box_iou
from epmvg.core.types import Box, InputError, Sample
from epmvg.data.convert import write_samples
from epmvg.data.negatives import content_words
from epmvg.data.readers.files import first_existing, path_inside, read_text_lines
from epmvg.data.readers.flickr30k import FOLDERS, Mention, parse_sentence, read_chains
from epmvg.data.readers.formats import format_of
from epmvg.data.registry import open_samples

Composed = Literal["span", "position", "size"]

LIMITS: dict[Composed, int] = {"span": 4, "position": 6, "size": 1}
"""Most expressions of each form for one image."""

LONGEST = 12
"""Words of a span; RefCOCO's expressions have 4 in the mean, RefCOCOg's 8."""

_WORD = re.compile(r"[^\W\d_]+")
_ARTICLE = re.compile(r"(?:a|an|the|his|her|its|their|some|this|that)\s+", re.IGNORECASE)
_ENDS_HEAD = re.compile(r"\s(?:of|in|with|on|at|from|for|and|or|to|by)\s|,")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_RELATIONS = _words("""
in with wearing holding riding on near beside behind carrying pushing pulling playing dressed sitting standing
leaning lying laying looking jumping talking walking running next under against at by between eating drinking
throwing catching kicking hitting painting reading using climbing driving chasing crossing facing kneeling petting
hugging swinging operating working cooking cutting pointing reaching
""")
"""Words that may follow X in "X in Y", after one of `_LINKS`."""
_LINKS = ("that are", "who are", "that is", "who is", "who 's", "are", "is")
_NEVER_RELATE = _words("and or but while as , . ; : - who that which when where")
_COLORS = _words("red orange yellow green blue purple pink brown black white grey gray tan")
_NUMBERS = _words("two three four five six several many some both few")
_SEVERAL = _words("group crowd couple pair team band crew family bunch audience class row people public")
_NO_KIND = _SEVERAL | _words("""
side top front back area part background group photo picture someone something number set lot kind type other others
""")
_WORN = frozenset(("clothing", "bodyparts"))

_SAME_KIND = {"guy": "man", "gentleman": "man", "male": "man", "fellow": "man", "lady": "woman", "female": "woman"}
_SAME_KIND |= {"kid": "child", "toddler": "child", "puppy": "dog", "bike": "bicycle"}
_CALLED = {
    "man": ("man", "man", "man", "guy", "guy", "dude"),
    "woman": ("woman", "woman", "woman", "lady", "lady", "girl"),
    "boy": ("boy", "boy", "kid"),
    "girl": ("girl", "girl", "girl", "kid"),
    "child": ("child", "kid", "kid"),
    "person": ("person", "person", "person", "one"),
    "bicycle": ("bike", "bicycle"),
    "dog": ("dog", "dog", "dog", "puppy"),
}
"""Words for a kind, the usual one more often."""

_SIDE = """
{side} {kind}|{side} {kind}|{side} {kind}|{kind} on {side}|{kind} on {side}|{kind} on the {side}|{kind} on the {side}
the {kind} on the {side}|the {side} {kind}|{side}most {kind}|{side} most {kind}|the {side}most {kind}|{kind} {side}
far {side} {kind}|{kind} on far {side}|{kind} on the far {side}|{kind} on the {side} side|{kind} on {side} side
{kind} to the {side}|{kind} at {side}|{kind} far {side}|{kind} at far {side}|the {kind} to the {side}
"""
_MIDDLE = """
middle {kind}|middle {kind}|{kind} in the middle|{kind} in the middle|{kind} in middle|the {kind} in the middle
center {kind}|{kind} in center|{kind} in the center|the middle {kind}|the center {kind}|{kind} middle
"""
_COUNTED = """
{nth} {kind} from {side}|{nth} {kind} from {side}|{nth} {kind} from the {side}|the {nth} {kind} from the {side}
{kind} {nth} from {side}|{nth} from {side}|{nth} from the {side}|{nth} {kind} on {side}|{kind} {nth} from the {side}
"""
_TOP = "top {kind}|upper {kind}|{kind} at top|{kind} at the top|the top {kind}|{kind} on top|highest {kind}"
_BOTTOM = "bottom {kind}|lower {kind}|{kind} at bottom|{kind} at the bottom|the bottom {kind}|{kind} on bottom"
_BIGGEST = "biggest {kind}|largest {kind}|the biggest {kind}|the largest {kind}|big {kind}|the big {kind}"
_BIGGER = "bigger {kind}|larger {kind}|the bigger {kind}|the larger {kind}|" + _BIGGEST
_CLOSEST = "closest {kind}|{kind} in front|the closest {kind}|front {kind}|{kind} closest to us|nearest {kind}"
_ORDINALS = {1: ("second", "2nd", "second"), 2: ("third", "3rd", "third")}

_SEPARATE = 0.1
"""Of the image's side: the least distance between the centers of two neighbors that "left" and "right" tell apart."""
_OVERLAP = 0.3
"""IoU above which two boxes are not told apart by a side; above 0.5 they are taken for the same thing."""
_LARGER = 2.0
"""Times the area of the next box: clearly the biggest."""


@dataclass(frozen=True, slots=True)
class _Scene:
    """Annotations of one image."""

    size: tuple[int, int]
    sentences: list[list[Mention | str]]
    chains: dict[str, list[Box]]


Expression = tuple[Composed, str, Box]  # form, phrase, box in pixels of the annotated image


def compose_expressions(root: Path | str, samples: Sequence[Sample], *, seed: int = 0) -> list[Sample]:
    """Compose referring expressions for images of Flickr30k Entities.

    Args:
        root: holds Annotations/ and Sentences/, itself or in one of `flickr30k.FOLDERS`.
        samples: samples of the images, with ids as `read_flickr30k` gives them ("667626#0:0-2/EN#1"); others are
            skipped. Their images may be smaller or larger than the annotated ones: boxes are scaled.
        seed: of what is drawn: which expressions of an image, and their wording.

    Returns:
        At most `LIMITS` new samples for each image, with its split; `extra["composed"]` is the form.

    Raises:
        InputError: annotations are missing or malformed.
    """
    base = first_existing([Path(root) / folder for folder in FOLDERS], ("Sentences",))
    if base is None:
        raise InputError(f"{root} holds no Sentences folder. Give the folder annotations.zip was unpacked in.")
    found: list[Sample] = []
    for image, sample in _annotated(samples).items():
        name = sample.id.partition("#")[0]
        scene = _read_scene(base.parent, name)
        width, height = sample.size or scene.size
        across, down = width / scene.size[0], height / scene.size[1]
        random = np.random.default_rng([seed, crc32(name.encode())])
        for number, (form, phrase, box) in enumerate(_expressions(scene, random)):
            scaled = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
            sample_id = f"{name}#composed-{number}"
            found.append(Sample(image, phrase, scaled, sample.split, sample_id, sample.size, {"composed": form}))
    return found


def compose_data(root: Path | str, target: Path) -> dict[str, int]:
    """Write the samples of Flickr30k Entities, all splits, with expressions composed for the training images.

    Args:
        root: of Flickr30k Entities, as for `read_flickr30k`.
        target: the file to write; its suffix is the format.

    Returns:
        numbers of samples: "flickr30k", and those of each form.

    Raises:
        InputError: the annotations cannot be read, or the format cannot hold the samples.
    """
    format_of(target)  # an unknown suffix is rejected before the work
    samples = open_samples("flickr30k", split=None, root=root)
    composed = compose_expressions(root, [sample for sample in samples if sample.split == "train"])
    write_samples(target, [*samples, *composed], root)
    return {"flickr30k": len(samples)} | Counter(sample.extra["composed"] for sample in composed)


def _annotated(samples: Iterable[Sample]) -> dict[Path, Sample]:
    """Return the first sample of each image that is one of Flickr30k Entities."""
    first: dict[Path, Sample] = {}
    for sample in samples:
        if re.fullmatch(r"\d+#.*", sample.id):
            first.setdefault(sample.image, sample)
    return first


def _read_scene(base: Path, name: str) -> _Scene:
    size, chains = read_chains(path_inside(base / "Annotations", f"{name}.xml", name))
    lines = read_text_lines(path_inside(base / "Sentences", f"{name}.txt", name))
    return _Scene(size, [list(parse_sentence(line)) for line in lines], chains)


def _expressions(scene: _Scene, random: np.random.Generator) -> list[Expression]:
    """Draw the expressions of an image, no two with the same wording."""
    groups = _groups(scene)
    forms = [_spans(scene, random), _positions(groups, scene.size, random), _sizes(groups, random)]
    kept: dict[str, Expression] = {}
    for drawn, limit in zip(forms, LIMITS.values(), strict=True):
        for place in random.permutation(len(drawn))[:limit].tolist():
            kept.setdefault(drawn[place][1], drawn[place])
    return list(kept.values())


def _spans(scene: _Scene, random: np.random.Generator) -> list[Expression]:
    """Compose "X in Y", "X wearing Y" from the phrases of one sentence, for each X that has one box."""
    found: list[Expression] = []
    for sentence in scene.sentences:
        for start, thing in enumerate(sentence):
            if not isinstance(thing, Mention) or not _WORN.isdisjoint(thing.types) or "scene" in thing.types:
                continue  # what follows "in a red shirt" describes the wearer
            boxes = scene.chains.get(thing.chain, [])
            for descriptions in _descriptions(sentence, start) if len(boxes) == 1 else ():
                description = " ".join(f"{link} {_described(other, random)}" for link, other in descriptions)
                phrase = f"{_reworded(thing.phrase, random)} {description}"
                if len(phrase.split()) <= LONGEST and thing.chain not in {other.chain for _, other in descriptions}:
                    found.append(("span", phrase, boxes[0]))
    return found


def _descriptions(sentence: Sequence[Mention | str], start: int) -> Iterator[list[tuple[str, Mention]]]:
    """Yield the descriptions of the thing at `start` in a sentence: (relation, other thing), alone and in pairs.

    What follows clothing describes its wearer: "man in a cap throwing a ball".
    """
    before: tuple[str, Mention] | None = None
    between: list[str] = []
    for piece in sentence[start + 1 :]:
        if isinstance(piece, str):
            between.append(piece.lower())
            continue
        listed = before is not None and between == ["and"] and "clothing" in piece.types
        relation = before[0] if before is not None and listed else _relation(" ".join(between))
        if relation is None:
            return
        yield [(relation, piece)]
        if before is not None:
            yield [before, ("and" if listed else relation, piece)]
        if _WORN.isdisjoint(piece.types):
            return
        before, between = (relation, piece), []


def _relation(between: str) -> str | None:
    """Return the words between two phrases if they relate the first to the second: "is holding" -> "holding"."""
    for link in _LINKS:
        between = between.removeprefix(f"{link} ")
    words = between.split()
    if not 1 <= len(words) <= 4 or words[0] not in _RELATIONS or not _NEVER_RELATE.isdisjoint(words):
        return None
    return " ".join(words)


def _reworded(phrase: str, random: np.random.Generator) -> str:
    """Vary the first noun phrase of a span: mostly without its article, sometimes with another usual noun."""
    bare = _ARTICLE.sub("", phrase, count=1).lower() if _ARTICLE.match(phrase) else phrase.lower()
    *before, last = bare.split() or [bare]
    if random.random() < 0.2 and last in ("man", "woman", "child"):
        last = _draw(_CALLED[last], random)
    bare = " ".join([*before, last])
    drawn = random.random()
    return bare if drawn < 0.5 else f"the {bare}" if drawn < 0.75 or bare == phrase.lower() else phrase.lower()


def _described(other: Mention, random: np.random.Generator) -> str:
    """Vary the second noun phrase of a span: sometimes without its article, or the color alone for clothing."""
    phrase = other.phrase.lower()
    colors = [word for word in phrase.split() if word in _COLORS]
    if "clothing" in other.types and len(colors) == 1 and random.random() < 0.2:
        return colors[0]
    return _ARTICLE.sub("", phrase, count=1) if _ARTICLE.match(phrase) and random.random() < 0.4 else phrase


def _positions(groups: dict[str, list[Box]], size: tuple[int, int], random: np.random.Generator) -> list[Expression]:
    found: list[Expression] = []
    for kind, things in groups.items():
        boxes = np.array(things)  # [n, 4]
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2 / np.array(size)
        for axis in (0, 1):
            order = centers[:, axis].argsort()
            if np.diff(centers[order, axis]).min() < _SEPARATE * (1 + axis):  # "top" needs more distance
                continue
            for place, number in enumerate(order.tolist()):
                templates = _templates(place, len(order), axis)
                for _ in range(2 if templates else 0):  # an object of RefCOCO is worded three times
                    found.append(("position", _worded(templates, kind, random), things[number]))
    return found


def _templates(place: int, count: int, axis: int) -> list[str]:
    """Return the wordings of a place in the order of `count` boxes along an axis (0 from the left, 1 from above)."""
    if axis:
        return _TOP.split("|") if place == 0 else _BOTTOM.split("|") if place == count - 1 else []
    if place in (0, count - 1):
        return _split(_SIDE, side="left" if place == 0 else "right")
    templates = []
    if 2 * place == count - 1:
        templates += _split(_MIDDLE)
    for side, steps in (("left", place), ("right", count - 1 - place)):
        if 2 * steps <= count - 1 and count > 2:
            for nth in _ORDINALS[steps]:
                templates += _split(_COUNTED, side=side, nth=nth)[:: 1 if count > 3 else 4]
    return templates


def _sizes(groups: dict[str, list[Box]], random: np.random.Generator) -> list[Expression]:
    found: list[Expression] = []
    for kind, things in groups.items():
        boxes = np.array(things)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
        *_, next_to, biggest = areas.argsort().tolist()
        if areas[biggest] < _LARGER * areas[next_to]:
            continue
        templates = _split(_BIGGER if len(boxes) == 2 else _BIGGEST)
        if boxes[biggest, 3] >= boxes[:, 3].max() and kind in (*_CALLED, "horse", "car"):  # lowest as well: in front
            templates += _split(_CLOSEST)
        found.append(("size", _worded(templates, kind, random), things[biggest]))
    return found


def _split(templates: str, **words: str) -> list[str]:
    """Return the wordings of a template list with words filled in."""
    wordings = [wording for line in templates.strip().splitlines() for wording in line.split("|")]
    return [wording.format(kind="{kind}", **words) for wording in wordings]


def _worded(templates: Sequence[str], kind: str, random: np.random.Generator) -> str:
    wording = _draw(templates, random)
    called = _draw(_CALLED.get(kind, (kind,)), random)
    return wording.format(kind=called)


def _draw(options: Sequence[str], random: np.random.Generator) -> str:
    return options[int(random.integers(len(options)))]


def _groups(scene: _Scene) -> dict[str, list[Box]]:
    """Return the boxes of each kind of object of which two to five are in the image, all with a box, well separated.

    An object is of every kind that a sentence names it, and people are of the kind "person" too.
    """
    named: dict[str, list[Mention]] = {}  # by chain
    for part in chain.from_iterable(scene.sentences):
        if isinstance(part, Mention):
            named.setdefault(part.chain, []).append(part)
    kinds: dict[str, list[Box]] = {}
    incomplete: set[str] = set()
    for number, mentions in named.items():
        boxes = scene.chains.get(number, [])
        several = any(_is_several(mention.phrase) for mention in mentions)
        for kind in dict.fromkeys(kind for mention in mentions for kind in _kinds_of(mention)):
            if number == "0" or not boxes or (several and len(boxes) == 1):
                incomplete.add(kind)  # their number and places are unknown
            known = kinds.setdefault(kind, [])
            for box in boxes:
                if (box_iou(np.array([box]), np.array([box, *known]))[0, 1:] <= 0.5).all():
                    known.append(box)
    return {
        kind: boxes
        for kind, boxes in kinds.items()
        if kind not in incomplete
        and 2 <= len(boxes) <= 5
        and box_iou(np.array(boxes), np.array(boxes))[np.triu_indices(len(boxes), 1)].max() < _OVERLAP
    }


def _kinds_of(mention: Mention) -> list[str]:
    """Return the kinds that a phrase names: the noun its head ends with, and "person" for people."""
    if not {"scene", "bodyparts", "notvisual"}.isdisjoint(mention.types):
        return []
    words = _head(mention.phrase)
    nouns = _singular(words[-1]) if words and words[-1] not in _NO_KIND else []
    person = ["person"] if "people" in mention.types else []
    return [*dict.fromkeys([_SAME_KIND.get(noun, noun) for noun in nouns] + person)]


def _is_several(phrase: str) -> bool:
    """Return whether a phrase means more than one object."""
    words = _head(phrase)
    if not words:
        return False
    last = words[-1]
    return not _NUMBERS.isdisjoint(words) or last in _SEVERAL or last not in (_singular(last) or [last])


def _head(phrase: str) -> list[str]:
    """Return the words of a phrase before what describes it: "man" of "man in a hat"."""
    return _WORD.findall(_ENDS_HEAD.split(phrase.lower(), maxsplit=1)[0])


def _singular(word: str) -> list[str]:
    """Return the singular of a word that may name a kind, none of a color, a place or "one"."""
    return [word] if word in _SAME_KIND else [*content_words(word)]
