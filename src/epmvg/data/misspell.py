"""Variations of typing: one typo, other letter case."""

from __future__ import annotations

import re

import numpy as np

_KEY_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
NEIGHBORS = {
    key: row[max(0, place - 1) : place] + row[place + 1 : place + 2]
    for row in _KEY_ROWS
    for place, key in enumerate(row)
}
"""The keys beside each key of an English keyboard."""

_WORD = re.compile(r"[^\W\d_]{3,}")  # a typo in "a" or "of" would leave nothing of the word


def vary_text(phrase: str, typo: float, case: float, random: np.random.Generator) -> str:
    """Return a phrase with one typo with probability `typo`, and in other letter case with probability `case`."""
    if random.random() < typo:
        phrase = misspell(phrase, random)
    if random.random() < case:
        phrase = (str.lower, str.capitalize, str.title, str.upper)[int(random.integers(4))](phrase)
    return phrase


def misspell(phrase: str, random: np.random.Generator) -> str:
    """Make one typo in one word of three letters or more: a neighboring key, a letter missed, doubled or swapped.

    The sides "left" and "right" stay as they are: "lright" may be either.
    """
    words = [word for word in _WORD.finditer(phrase) if word.group().lower() not in ("left", "right")]
    if not words:
        return phrase
    word = words[int(random.integers(len(words)))]
    place = word.start() + int(random.integers(len(word.group())))
    letter, following = phrase[place], phrase[place + 1 : place + 2]
    beside = NEIGHBORS.get(letter.lower(), letter)
    key = beside[int(random.integers(len(beside)))]
    typed = [key.upper() if letter.isupper() else key, "", 2 * letter]
    if place + 1 < word.end():
        typed.append(following + letter)
    drawn = int(random.integers(len(typed)))
    return phrase[:place] + typed[drawn] + phrase[place + (2 if drawn == 3 else 1) :]
