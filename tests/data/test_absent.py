"""Absent phrases: nothing they name is named by the image they are asked of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from epmvg.core.types import Batch, Sample
from epmvg.data.negatives import Absence, negative_samples, things_named
from epmvg.data.views import evaluation_view

SAID = {
    "park": ["a man in a blue shirt", "two horses", "the left one"],
    "kitchen": ["a woman", "the red kettle", "a horse on the wall"],
    "beach": ["the dog", "a blue ball", "the largest thing"],
}
RECORDS = [
    Sample(Path(f"{image}.jpg"), phrase, (0, 0, 5, 5), size=(len(image), 9))
    for image, phrases in SAID.items()
    for phrase in phrases
]


@pytest.mark.parametrize(
    ("phrase", "things"),
    [
        ("Two men in blue shirts", {"man", "shirt"}),
        ("the dresses", {"dress"}),
        ("a dress", {"dress"}),
        ("the leftmost thing", set()),
        ("the big red one on the left", set()),
    ],
)
def test_things_are_what_is_left_without_places_sizes_and_colours(phrase: str, things: set[str]) -> None:
    assert things_named(phrase) == things


def test_absent_rows_name_nothing_their_image_shows() -> None:
    absent = negative_samples(RECORDS, 1.0, seed=3)
    assert absent == negative_samples(RECORDS, 1.0, seed=3)
    belongs = {(record.image, record.phrase) for record in RECORDS}
    for record in absent:
        assert (record.image, record.phrase) not in belongs and record.extra == {"absent": True}
        assert record.size == (len(record.image.stem), 9)
        assert things_named(record.phrase).isdisjoint(things_named(" ".join(SAID[record.image.stem])))
    assert {record.phrase for record in absent} == {p for said in SAID.values() for p in said if things_named(p)}
    assert len(negative_samples(RECORDS, 0.34)) <= 3 and negative_samples(RECORDS, 0) == []


def test_pairs_of_a_batch_are_absent_and_as_many_as_asked() -> None:
    records = RECORDS[:6]
    image_index = torch.tensor([0, 0, 0, 1, 1, 1])
    nothing = torch.zeros(0)
    whole = evaluation_view((9, 9), 32).letterbox
    phrases = [record.phrase for record in records]
    batch = Batch(nothing, nothing, nothing, nothing, image_index, nothing, phrases, [whole, whole], records)
    absence = Absence(RECORDS)
    pairs = absence.pairs(batch, 1.0, (7, 1))
    assert pairs is not None
    found = {(int(image), records[phrase].phrase) for image, phrase in pairs.T.tolist()}
    assert found == {(1, "a man in a blue shirt"), (0, "a woman"), (0, "the red kettle")}
    few = absence.pairs(batch, 0.5, (7, 1))
    assert few is None or few.shape[1] <= 3
    alone = Batch(nothing, nothing, nothing, nothing, image_index[:3], nothing, phrases[:3], [whole], records[:3])
    assert absence.pairs(alone, 1.0, (7, 1)) is None


PLURALS = """
bus/buses knife/knives mouse/mice leaf/leaves shelf/shelves foot/feet tie/ties movie/movies glass/glasses lens/lenses
child/children woman/women dress/dresses person/people series/series horse/horses box/boxes wolf/wolves wife/wives
loaf/loaves calf/calves scarf/scarves building/buildings painting/paintings goose/geese sheep/sheep tomato/tomatoes
bookshelf/bookshelves vase/vases donkey/donkeys lady/ladies
"""


@pytest.mark.parametrize(("one", "several"), [pair.split("/") for pair in PLURALS.split()])
def test_singular_and_plural_are_one_thing(one: str, several: str) -> None:
    assert things_named(f"a {one}") == things_named(f"two {several}") != frozenset()


@pytest.mark.parametrize(
    "words",
    ["bus/bun", "tie/tile", "tennis/ten", "lens/lent", "glass/grass", "gloves/glow", "caves/cafes"],
)
def test_different_things_stay_different(words: str) -> None:
    one, other = words.split("/")
    assert things_named(one).isdisjoint(things_named(other)) and things_named(one)


def test_plurals_are_not_asked_as_absent() -> None:
    absence = Absence([Sample(Path("a.jpg"), "a bus", (0, 0, 5, 5)), Sample(Path("b.jpg"), "a dog", (0, 0, 5, 5))])
    assert not absence("the buses", Path("a.jpg")) and absence("the buses", Path("b.jpg"))
