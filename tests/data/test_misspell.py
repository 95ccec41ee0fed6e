"""Typos and letter case of training phrases: one typo, at the given rate, the same in each pass over an epoch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epmvg.config.settings import AugmentSettings
from epmvg.data.loader import GroundingLoader
from epmvg.data.misspell import misspell, vary_text
from epmvg.data.registry import open_samples
from epmvg.models.grounder import Grounder


def edits(one: str, other: str) -> int:
    """Count letters put in, left out, replaced or swapped with the next."""
    table = np.zeros((len(one) + 1, len(other) + 1), int)
    table[:, 0], table[0] = np.arange(len(one) + 1), np.arange(len(other) + 1)
    for i in range(1, len(one) + 1):
        for j in range(1, len(other) + 1):
            differs = one[i - 1] != other[j - 1]
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + differs)
            if i > 1 and j > 1 and one[i - 1] == other[j - 2] and one[i - 2] == other[j - 1]:
                table[i, j] = min(table[i, j], table[i - 2, j - 2] + 1)
    return int(table[-1, -1])


@given(st.text(max_size=30), st.integers(0, 2**32 - 1))
def test_a_typo_is_one_edit_at_most(phrase: str, seed: int) -> None:
    assert edits(phrase, misspell(phrase, np.random.default_rng(seed))) <= 1


def test_every_kind_of_typo_occurs_and_sides_stay() -> None:
    random = np.random.default_rng(0)
    typed = {misspell("dog", random) for _ in range(300)}
    assert {"og", "ddog", "odg", "sog", "fog", "do"} <= typed
    assert {misspell("left right", random) for _ in range(50)} == {"left right"}
    assert {misspell("an ox", random) for _ in range(50)} == {"an ox"}


@pytest.mark.parametrize(("typo", "letter_case"), [(0.0, 0.0), (0.3, 0.0), (1.0, 0.0), (0.0, 0.5)])
def test_phrases_vary_at_the_given_rate(typo: float, letter_case: float) -> None:
    random = np.random.default_rng(0)
    varied = [vary_text("some yellow umbrella", typo, letter_case, random) for _ in range(2000)]
    changed = sum(text.lower() != "some yellow umbrella" for text in varied) / 2000
    assert changed == pytest.approx(0.97 * typo, abs=0.04)  # swapping two equal letters changes nothing
    assert any(text.isupper() for text in varied) == (letter_case > 0)


def test_the_loader_repeats_the_typos_of_an_epoch_and_varies_them_between_epochs(squares: Path, tiny: Grounder) -> None:
    def phrases(augment: AugmentSettings, epoch: int) -> list[str]:
        samples = open_samples(str(squares), split="train")
        loader = GroundingLoader(
            samples, tiny.tokenize, image_size=64, batch_size=8, augment=augment, shuffle=True, seed=1
        )
        return [phrase for batch in loader.batches(epoch) for phrase in batch.phrases]

    typed = phrases(AugmentSettings(typo=1.0), 0)
    assert typed == phrases(AugmentSettings(typo=1.0), 0) != phrases(AugmentSettings(typo=1.0), 1)
    assert all(
        edits(a, b) <= 1 for a, b in zip(typed, phrases(AugmentSettings(), 0), strict=True)
    ) and typed != phrases(AugmentSettings(), 0)
