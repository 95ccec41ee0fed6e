"""Phrases that do not belong: a phrase of one image asked of another, to learn and to test "nothing there".

A phrase counts as absent if none of the things it names is named by any phrase of the other image. What nobody
mentioned may still be in the picture, so a few of these pairs are wrong.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import simplemma
import torch
from torch import Tensor

from epmvg.core.types import Batch, Sample

_NAMELESS_WORDS = """
a an the this that these those his her hers its their our my your one ones other another some any all both each of
in on at by to with without and or for from into onto over under above below behind between near next beside inside
outside around against along across through off up down out is are was were be being has have who which what where
it he she they them him there here left right leftmost rightmost top bottom upper lower middle center centre corner
side edge front back far close closest nearest first second third last thing things object objects item guy part
picture image photo big bigger biggest small smaller smallest large larger largest little tall taller tallest short
long old young new two three four five several few many red orange yellow green blue purple pink brown black white
grey gray silver golden dark light bright colored coloured
"""
"""With these two phrases have no thing in common yet: function words, places, sizes, colours."""
_NAMELESS = frozenset(_NAMELESS_WORDS.split())
_TRIES = 10  # images tried for a phrase; one whose things are everywhere is left out


def things_named(phrase: str) -> frozenset[str]:
    """Return the words of a phrase that may name a thing, plurals as singulars."""
    words = re.findall(r"[^\W\d_]+", phrase.lower())
    return frozenset(_lemma(word) for word in words if word not in _NAMELESS)


_NOUNS = {"leaves": "leaf", "shelves": "shelf", "loaves": "loaf", "calves": "calf", "halves": "half"}
_NOUNS |= {"thieves": "thief", "wives": "wife", "people": "person"}
"""Plurals that the lemmatiser takes for verbs, or for words of their own."""


@functools.lru_cache(maxsize=100_000)
def _lemma(word: str) -> str:
    """Return what singular and plural of a noun share: bus and buses, knife and knives become one."""
    lemma = _NOUNS.get(word) or simplemma.lemmatize(word, "en").lower()
    return lemma if lemma == word else _lemma(lemma)


class Absence:
    """Says which phrases name nothing that an image's phrases name.

    Args:
        records: all that is known of the images.
    """

    def __init__(self, records: Sequence[Sample]) -> None:
        self.of_phrase: dict[str, frozenset[str]] = {}
        self.of_image: dict[Path, frozenset[str]] = {}
        named: dict[Path, set[str]] = {}
        for record in records:
            words = self.of_phrase.setdefault(record.phrase, things_named(record.phrase))
            named.setdefault(record.image, set()).update(words)
        self.of_image = {image: frozenset(words) for image, words in named.items()}

    def __call__(self, phrase: str, image: Path) -> bool:
        """Say whether a phrase names something, and nothing that belongs to an image."""
        words = self.of_phrase[phrase] if phrase in self.of_phrase else things_named(phrase)
        return bool(words) and words.isdisjoint(self.of_image.get(image, frozenset()))

    def pairs(self, batch: Batch, share: float, seed: Sequence[int]) -> Tensor | None:
        """Pair phrases of a batch with other images of it, `share` pairs a phrase at most.

        Returns:
            int64 [2, A], image and phrase; None where no phrase is absent anywhere.
        """
        photos = dict(enumerate(batch.image_paths))
        random = np.random.default_rng([*seed])
        chosen = random.permutation(len(batch.samples))[: round(share * len(batch.samples))]
        found = []
        for phrase in chosen.tolist():
            other = self.other_image(batch.samples[phrase].phrase, photos, random)
            if other is not None:
                found.append((other, phrase))
        return torch.tensor(found, device=batch.image_index.device).T if found else None

    def other_image(self, phrase: str, photos: Mapping[int, Path], random: np.random.Generator) -> int | None:
        """Draw one of some numbered images that a phrase is absent from; None where a few draws find none."""
        tried = random.permutation(list(photos))[:_TRIES].tolist()
        return next((image for image in tried if self(phrase, photos[image])), None)


def negative_samples(records: Sequence[Sample], share: float, *, seed: int = 0) -> list[Sample]:
    """Ask phrases of some records of other images, `share` rows a record at most, marked by `extra["absent"]`.

    The box of such a row means nothing.
    """
    absence = Absence(records)
    sizes = {record.image: record.size for record in records}
    photos = dict(enumerate(sizes))
    random = np.random.default_rng(seed)
    found = []
    for number in sorted(random.permutation(len(records))[: round(share * len(records))].tolist()):
        record = records[number]
        other = absence.other_image(record.phrase, photos, random)
        if other is not None:
            image = photos[other]
            found.append(replace(record, image=image, size=sizes[image], id="", extra={"absent": True}))
    return found
