"""Phrases as people mistype them, dress them up or turn them round."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from functools import partial

import numpy as np

from epmvg.data.scene_sprites import CLOSE_COLOURS
from epmvg.data.transforms import cased_like, swap_sides
from epmvg.reporting.slices import COLOUR_WORDS
from epmvg.stress.kind import PhraseStress
from epmvg.stress.languages import LANGUAGES, translate

_KEY_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
NEIGHBOURS = {
    key: row[max(0, place - 1) : place] + row[place + 1 : place + 2]
    for row in _KEY_ROWS
    for place, key in enumerate(row)
}
"""The keys beside each key of an English keyboard."""

_WORD = re.compile(r"[^\W\d_]{3,}")  # a slip in "a" or "of" would leave nothing of the word
_PALETTE = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey")
_COLOUR = re.compile(rf"\b({COLOUR_WORDS})\b", re.IGNORECASE)
_FAMILIES = {
    "violet": ("purple", "blue", "pink"),
    "tan": ("brown", "orange", "yellow", "white"),
    "beige": ("brown", "orange", "yellow", "white"),
    "turquoise": ("blue", "green"),
    "teal": ("blue", "green"),
    "navy": ("blue", "black", "purple"),
    "maroon": ("red", "brown", "purple"),
    "gold": ("yellow", "orange", "brown"),
    "golden": ("yellow", "orange", "brown"),
    "silver": ("grey", "white"),
    "blond": ("yellow", "brown", "white"),
    "blonde": ("yellow", "brown", "white"),
}
"""Colour words outside the palette, and the colours of it that people call by the same word."""
_ARTICLE = re.compile(r"(a|an|the|this|that|his|her|its|their|one|two|three|another|some)\b", re.IGNORECASE)


def _both_ways(*pairs: tuple[str, str]) -> dict[str, str]:
    return dict(pairs) | {b: a for a, b in pairs}


# One word has one opposite, so that swapping twice changes nothing.
# Left out are words that also name parts and clothes, whose opposite would mean the same thing's other end or nothing:
# "tank top", "the back of the chair", "short sleeves".
HEIGHTS = _both_ways(
    *(("above", "below"), ("topmost", "bottommost"), ("upper", "lower"), ("on top of", "underneath")),
    *((f"top {side}", f"bottom {side}") for side in ("left", "right", "row", "shelf", "corner", "one")),
)
DEPTHS = _both_ways(
    *(("in front of", "behind"), ("foreground", "background")),
    *(("closest", "farthest"), ("nearest", "furthest"), ("closer", "farther")),
)
SIZES = _both_ways(
    *(("big", "little"), ("large", "small"), ("bigger", "smaller"), ("biggest", "smallest")),
    *(("taller", "shorter"), ("tallest", "shortest")),
)

CLAUSE = "which can be seen somewhere in this picture"
"""True of whatever a phrase means, and no help in finding it."""


def mistype_once(phrase: str, random: np.random.Generator) -> str | None:
    """Make one slip of the fingers in one word."""
    words = list(_WORD.finditer(phrase))
    if not words:
        return None
    word = words[int(random.integers(len(words)))]
    return phrase[: word.start()] + _slip(word.group(), random) + phrase[word.end() :]


def mistype_every_word(phrase: str, random: np.random.Generator) -> str:
    """Make one slip of the fingers in each word."""
    return _WORD.sub(lambda word: _slip(word.group(), random), phrase)


def _slip(word: str, random: np.random.Generator) -> str:
    """Hit the key beside a letter, miss it, or hit it twice."""
    place = int(random.integers(len(word)))
    letter = word[place]
    beside = NEIGHBOURS.get(letter.lower(), letter)
    made = [cased_like(letter, beside[int(random.integers(len(beside)))]), "", 2 * letter]
    return word[:place] + made[int(random.integers(len(made)))] + word[place + 1 :]


def shuffle_words(phrase: str, random: np.random.Generator) -> str | None:
    """Put the words into another order."""
    words = phrase.split()
    if len(set(words)) < 2:
        return None
    while True:
        shuffled = [words[i] for i in random.permutation(len(words))]
        if shuffled != words:
            return " ".join(shuffled)


def swap_colours(phrase: str, random: np.random.Generator) -> str:
    """Name another colour for each colour, one that nobody would call by the same word."""

    def other(match: re.Match[str]) -> str:
        word = match.group().lower().replace("gray", "grey")
        if word not in _PALETTE and word not in _FAMILIES:  # "colourful" has no other
            return match.group()
        own = _FAMILIES.get(word, (word,))
        apart = [c for c in _PALETTE if c not in own and not any(frozenset((c, each)) in CLOSE_COLOURS for each in own)]
        return cased_like(match.group(), apart[int(random.integers(len(apart)))])

    return _COLOUR.sub(other, phrase)


def swap_opposites(phrase: str, _: np.random.Generator, *, pairs: Mapping[str, str]) -> str:
    """Say the opposite of each word that has one, keeping the letters' case."""
    known = "|".join(sorted(pairs, key=len, reverse=True))
    return re.sub(
        rf"\b({known})\b",
        lambda match: cased_like(match.group(), pairs[match.group().lower()]),
        phrase,
        flags=re.IGNORECASE,
    )


def negate(phrase: str, _: np.random.Generator) -> str:
    """Ask for anything but what the phrase means."""
    return f"not {phrase}" if _ARTICLE.match(phrase) else f"not the {phrase}"


def _say(phrase: str, _: np.random.Generator, *, how: str) -> str:
    return how.format(phrase)


PHRASE_STRESSES = (
    PhraseStress(
        "one typo", "A slip in one word: a neighbouring key, a missed or a doubled one.", mistype_once, "a word"
    ),
    PhraseStress("a typo in every word", "The same slips, one in each word.", mistype_every_word, "a word"),
    PhraseStress("upper case", "THE RED CAR.", lambda phrase, _: phrase.upper(), "a small letter"),
    PhraseStress("title case", "The Red Car.", lambda phrase, _: string.capwords(phrase, " "), "a small letter"),
    PhraseStress(
        "polite",
        "please find ... in this picture.",
        partial(_say, how="please find {} in this picture"),
        "words",
    ),
    PhraseStress(
        "long, said after",
        f"A true clause follows that helps nobody: ..., {CLAUSE}.",
        partial(_say, how=f"{{}}, {CLAUSE}"),
        "words",
    ),
    PhraseStress(
        "long, said before",
        "Such a clause leads: what can be seen in this picture here is ...",
        partial(_say, how="what can be seen in this picture here is {}"),
        "words",
    ),
    PhraseStress(
        "too long, said after",
        "Eight such clauses follow, more than a model reads: it is cut.",
        partial(_say, how="{}" + 8 * f", {CLAUSE}"),
        "words",
    ),
    PhraseStress(
        "too long, said before",
        "Eight such clauses lead, so that a model that cuts long phrases never reads the phrase.",
        partial(_say, how=8 * "as can be seen somewhere in this picture, " + "{}"),
        "words",
    ),
    PhraseStress("words shuffled", "The same words in another order.", shuffle_words, "two different words"),
    *(
        PhraseStress(
            f"in {name}",
            "Translated by a grammar of short phrases and a table of nouns and adjectives (stress/words.yaml).",
            partial(translate, language=language),
            "only words and forms of the table",
        )
        for language, name in LANGUAGES.items()
    ),
    PhraseStress("colours swapped", "Another colour for each colour.", swap_colours, "a colour word", "other"),
    PhraseStress(
        "sides swapped",
        "left for right, right for left.",
        lambda phrase, _: swap_sides(phrase),
        "left or right",
        "other",
    ),
    PhraseStress(
        "heights swapped",
        "above for below, top left for bottom left, upper for lower, and back.",
        partial(swap_opposites, pairs=HEIGHTS),
        "a word of height",
        "other",
    ),
    PhraseStress(
        "depths swapped",
        "in front of for behind, foreground for background, nearest for furthest, and back.",
        partial(swap_opposites, pairs=DEPTHS),
        "a word of depth",
        "other",
    ),
    PhraseStress(
        "sizes swapped",
        "big for little, large for small, bigger for smaller, taller for shorter, and back.",
        partial(swap_opposites, pairs=SIZES),
        "a word of size",
        "other",
    ),
    PhraseStress("negated", "not the ...: anything else would do.", negate, "words", "other"),
)
