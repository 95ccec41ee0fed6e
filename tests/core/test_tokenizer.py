"""Phrases become padded word pieces as transformers makes them."""

from __future__ import annotations

import numpy as np

from epmvg.core.tokenizer import PhraseTokenizer
from epmvg.models.grounder import Grounder


def test_the_bundled_vocabulary_is_that_of_bert(tiny: Grounder) -> None:
    phrases = ["a dog", "  The Woman's café ", "word " * 30, "\N{DOG FACE}"]
    bert, own = PhraseTokenizer.bert(tiny.max_length)(phrases), tiny.phrase_tokenizer()(phrases)
    assert np.array_equal(bert.ids, own.ids) and np.array_equal(bert.padding, own.padding)
    assert bert.truncated.tolist() == [False, False, True, False]
    assert bert.unknown.tolist() == [False, False, False, True]


def test_no_phrase_is_an_empty_array(tiny: Grounder) -> None:
    assert tiny.phrase_tokenizer()([]).ids.shape == (0, 0)
