"""Phrases as users give them: checked, and dealt out to images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from epmvg.core.types import InputError
from epmvg.data.readers.annotations import phrase_error


def phrases_of_each(phrases: Any, images: int) -> list[list[str]]:
    """Return the phrases of each of several images."""
    if _is_list(phrases) and phrases and not any(isinstance(each, str) for each in phrases):
        if len(phrases) != images:
            raise InputError(f"There are {images} images and {len(phrases)} lists of phrases: give one an image.")
        return [checked_phrases(each) for each in phrases]
    return [checked_phrases(phrases)] * images


def checked_phrases(phrases: Any) -> list[str]:
    """Return phrases as a list.

    Raises:
        InputError: there is none, or one cannot be asked.
        TypeError: they are neither a text nor a sequence of texts.
    """
    asked = [phrases] if isinstance(phrases, str) else list(phrases) if _is_list(phrases) else None
    wrong = type(phrases) if asked is None else next((type(one) for one in asked if not isinstance(one, str)), None)
    if asked is None or wrong is not None:
        raise TypeError(
            f"Phrases must be a text or a list of texts, not {'' if asked is None else 'with '}{_name(wrong)}."
        )
    if not asked:
        raise InputError("There is no phrase to find: give at least one.")
    for phrase in asked:
        fault = phrase_error(phrase)
        if fault is not None:
            raise InputError(f"The phrase {shorten(phrase)!r} cannot be asked: {fault}.")
    return asked


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview)


def _name(kind: type | None) -> str:
    return kind.__name__ if kind is not None else "nothing"


def shorten(phrase: str) -> str:
    """Return a phrase as it fits into a sentence."""
    return phrase if len(phrase) <= 40 else phrase[:37] + "..."
