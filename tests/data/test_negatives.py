"""Negative phrases: none of their content words is in a phrase of the image."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from epmvg.core.geometry import Letterbox
from epmvg.core.types import Batch, Sample
from epmvg.data.negatives import NegativeSampler, content_words, negative_samples

PHRASES = {
    "park": ["a man in a blue shirt", "two horses", "the left one"],
    "kitchen": ["a woman", "the red kettle", "a horse on the wall"],
    "beach": ["the dog", "a blue ball", "the largest thing"],
}
SAMPLES = [
    Sample(Path(f"{image}.jpg"), phrase, (0, 0, 5, 5), size=(len(image), 9))
    for image, phrases in PHRASES.items()
    for phrase in phrases
]


@pytest.mark.parametrize(
    ("phrase", "words"),
    [
        ("Two men in blue shirts", {"man", "shirt"}),
        ("the dresses", {"dress"}),
        ("a dress", {"dress"}),
        ("the leftmost thing", set()),
        ("the big red one on the left", set()),
    ],
)
def test_content_words_exclude_places_sizes_and_colors(phrase: str, words: set[str]) -> None:
    assert content_words(phrase) == words


def test_negative_samples_share_no_content_word_with_their_image() -> None:
    negatives = negative_samples(SAMPLES, 1.0, seed=3)
    assert negatives == negative_samples(SAMPLES, 1.0, seed=3)
    belongs = {(sample.image, sample.phrase) for sample in SAMPLES}
    for sample in negatives:
        assert (sample.image, sample.phrase) not in belongs and sample.extra == {"negative": True}
        assert sample.size == (len(sample.image.stem), 9)
        assert content_words(sample.phrase).isdisjoint(content_words(" ".join(PHRASES[sample.image.stem])))
    assert {sample.phrase for sample in negatives} == {
        p for phrases in PHRASES.values() for p in phrases if content_words(p)
    }
    assert len(negative_samples(SAMPLES, 0.34)) <= 3 and negative_samples(SAMPLES, 0) == []


def test_pairs_of_a_batch_are_negative_and_limited_in_number() -> None:
    samples = SAMPLES[:6]
    image_index = torch.tensor([0, 0, 0, 1, 1, 1])
    nothing = torch.zeros(0)
    whole = Letterbox.fit(9, 9, 32)
    phrases, paths = [sample.phrase for sample in samples], list(dict.fromkeys(sample.image for sample in samples))
    batch = Batch(nothing, nothing, nothing, nothing, image_index, nothing, phrases, [whole, whole], samples, paths)
    sampler = NegativeSampler(SAMPLES)
    pairs = sampler.pairs(batch, 1.0, (7, 1))
    assert pairs is not None
    found = {(int(image), samples[phrase].phrase) for image, phrase in pairs.T.tolist()}
    assert found == {(1, "a man in a blue shirt"), (0, "a woman"), (0, "the red kettle")}
    few = sampler.pairs(batch, 0.5, (7, 1))
    assert few is None or few.shape[1] <= 3
    alone = Batch(
        nothing, nothing, nothing, nothing, image_index[:3], nothing, phrases[:3], [whole], samples[:3], paths[:1]
    )
    assert sampler.pairs(alone, 1.0, (7, 1)) is None


PLURALS = """
bus/buses knife/knives mouse/mice leaf/leaves shelf/shelves foot/feet tie/ties movie/movies glass/glasses lens/lenses
child/children woman/women dress/dresses person/people series/series horse/horses box/boxes wolf/wolves wife/wives
loaf/loaves calf/calves scarf/scarves building/buildings painting/paintings goose/geese sheep/sheep tomato/tomatoes
bookshelf/bookshelves vase/vases donkey/donkeys lady/ladies
"""


@pytest.mark.parametrize(("one", "several"), [pair.split("/") for pair in PLURALS.split()])
def test_singular_and_plural_are_one_word(one: str, several: str) -> None:
    assert content_words(f"a {one}") == content_words(f"two {several}") != frozenset()


@pytest.mark.parametrize(
    "words",
    ["bus/bun", "tie/tile", "tennis/ten", "lens/lent", "glass/grass", "gloves/glow", "caves/cafes"],
)
def test_different_words_stay_different(words: str) -> None:
    one, other = words.split("/")
    assert content_words(one).isdisjoint(content_words(other)) and content_words(one)


def test_plurals_are_not_negative() -> None:
    sampler = NegativeSampler(
        [Sample(Path("a.jpg"), "a bus", (0, 0, 5, 5)), Sample(Path("b.jpg"), "a dog", (0, 0, 5, 5))]
    )
    assert not sampler.is_negative("the buses", Path("a.jpg")) and sampler.is_negative("the buses", Path("b.jpg"))
