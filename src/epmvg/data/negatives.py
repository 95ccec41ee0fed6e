"""Negative phrases: phrases of one image paired with another, for training and evaluating "no such object".

A phrase is negative for an image if none of its content words is in any phrase of that image. An object that no phrase
mentions may still be visible, so a few of these pairs are wrong.
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

from epmvg.core.hardware import to_device
from epmvg.core.types import Batch, Sample

_STOP_WORD_LIST = """
a an the this that these those his her hers its their our my your one ones other another some any all both each of
in on at by to with without and or for from into onto over under above below behind between near next beside inside
outside around against along across through off up down out is are was were be being has have who which what where
it he she they them him there here left right leftmost rightmost top bottom upper lower middle center centre corner
side edge front back far close closest nearest first second third last thing things object objects item guy part
picture image photo big bigger biggest small smaller smallest large larger largest little tall taller tallest short
long old young new two three four five several few many red orange yellow green blue purple pink brown black white
grey gray silver golden dark light bright colored coloured
"""
_STOP_WORDS = frozenset(_STOP_WORD_LIST.split())
"""Words that two phrases may share without naming the same object: function words, places, sizes, colors."""

_LEMMAS = {"leaves": "leaf", "shelves": "shelf", "loaves": "loaf", "calves": "calf", "halves": "half"}
_LEMMAS |= {"thieves": "thief", "wives": "wife", "people": "person"}
"""Plurals that simplemma takes for verbs or words of their own."""

_TRIES = 10  # images tried for a phrase before it is skipped


@functools.lru_cache(maxsize=2**20)
def content_words(phrase: str) -> frozenset[str]:
    """Return the lemmas of the words of a phrase that may name an object."""
    words = re.findall(r"[^\W\d_]+", phrase.lower())
    return frozenset(_lemma(word) for word in words if word not in _STOP_WORDS)


@functools.lru_cache(maxsize=100_000)
def _lemma(word: str) -> str:
    lemma = _LEMMAS.get(word) or simplemma.lemmatize(word, "en").lower()
    return lemma if lemma == word else _lemma(lemma)


class NegativeSampler:
    """Finds images for which a phrase is negative.

    Args:
        samples: all known phrases of the images.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        words: dict[Path, set[str]] = {}
        for sample in samples:
            words.setdefault(sample.image, set()).update(content_words(sample.phrase))
        self._words_of = words

    def is_negative(self, phrase: str, image: Path) -> bool:
        """Return whether a phrase has content words, and none of them is in a phrase of an image."""
        words = content_words(phrase)
        return bool(words) and words.isdisjoint(self._words_of.get(image, ()))

    def pairs(self, batch: Batch, per_phrase: float, seed: Sequence[int]) -> Tensor | None:
        """Pair phrases of a batch with images of it for which they are negative.

        Args:
            batch: with P samples.
            per_phrase: at most round(per_phrase * P) pairs are drawn.
            seed: of the draw.

        Returns:
            int64 [2, A] of image and phrase numbers; None if there is no pair.
        """
        images = dict(enumerate(batch.image_paths))
        random = np.random.default_rng([*seed])
        chosen = random.permutation(len(batch.samples))[: round(per_phrase * len(batch.samples))]
        found = []
        for phrase in chosen.tolist():
            image = self.draw_image(batch.samples[phrase].phrase, images, random)
            if image is not None:
                found.append((image, phrase))
        return to_device(torch.tensor(found).T, batch.image_index.device) if found else None

    def draw_image(self, phrase: str, images: Mapping[int, Path], random: np.random.Generator) -> int | None:
        """Draw the number of an image for which a phrase is negative; None if a few draws find none."""
        tried = random.permutation(list(images))[:_TRIES].tolist()
        return next((number for number in tried if self.is_negative(phrase, images[number])), None)


def negative_samples(samples: Sequence[Sample], per_phrase: float, *, seed: int = 0) -> list[Sample]:
    """Return negative samples, at most `per_phrase` for each sample, marked by `extra["negative"]`.

    Their boxes have no meaning.
    """
    sampler = NegativeSampler(samples)
    sizes = {sample.image: sample.size for sample in samples}
    images = dict(enumerate(sizes))
    random = np.random.default_rng(seed)
    negatives = []
    for number in sorted(random.permutation(len(samples))[: round(per_phrase * len(samples))].tolist()):
        image = sampler.draw_image(samples[number].phrase, images, random)
        if image is not None:
            path = images[image]
            negatives.append(replace(samples[number], image=path, size=sizes[path], id="", extra={"negative": True}))
    return negatives
