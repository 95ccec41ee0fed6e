"""Noun phrases of captions name objects as people do."""

from __future__ import annotations

import sys

import pytest

from epmvg.core.extras import MissingExtraError
from epmvg.data.noun_phrases import noun_phrases

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # TextBlob leaves its lexicon open


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        ("A man in a red shirt and two young women ride bikes.", ["A man", "a red shirt", "two young women", "bikes"]),
        ("He's wearing the boy's hat", ["the boy", "hat"]),
        (
            "glasses and an orange hat (left), a black and white dog",
            ["glasses", "an orange hat", "a black and white dog"],
        ),
        ("A group of people at the edge of the beach, in front of him", ["A group of people", "the beach"]),
        ("dogs", ["dogs"]),
        (" ... ", []),
        ("", []),
    ],
)
def test_phrases_are_the_objects_of_a_caption(caption: str, phrases: list[str]) -> None:
    assert noun_phrases(caption) == phrases


def test_a_missing_chunker_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textblob", None)
    monkeypatch.setitem(sys.modules, "textblob.en", None)
    with pytest.raises(MissingExtraError, match=r"Taking phrases from captions needs textblob.*epmvg\[captions\]"):
        noun_phrases("a dog")
