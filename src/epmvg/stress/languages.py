"""Short phrases in German, French and Spanish, by a grammar small enough to be right.

`words.yaml` holds nouns and adjectives whose translation leaves no choice. A phrase is translated only if it is
[article] [adjective] noun [place], all of it in the table; word-for-word translation of anything else would not be the
language it claims to be.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import yaml

LANGUAGES = {"de": "German", "fr": "French", "es": "Spanish"}

NounPhrase = Callable[[str, str, str], str]
"""(the, a or "" - adjective's pattern or "" - noun with its article) -> the noun phrase."""

_RELATION = {"to the left of": "left", "to the right of": "right", "above": "above", "below": "below"}


@dataclass(frozen=True, slots=True)
class _Grammar:
    phrase: NounPhrase
    related: Callable[[str, str], str]  # (relation, noun with its article) -> "to the left of the ..."
    left: str
    right: str


def translate(phrase: str, _: np.random.Generator, *, language: str) -> str | None:
    """Return a phrase in another language, None where the grammar or the table has no exact translation."""
    match = _pattern().fullmatch(" ".join(phrase.lower().split()))
    if match is None:
        return None
    table, grammar = _table(), _GRAMMARS[language]
    article = {"the": "the", None: ""}.get(match["article"], "a")
    noun = table["nouns"][match["noun"]].get(language)
    if noun is None or (match["adjective"] in table["definite"] and article != "the"):
        return None
    adjective = table["adjectives"][match["adjective"]][language] if match["adjective"] else ""
    said = grammar.phrase(article, adjective, noun)
    if match["side"]:
        return f"{said} {grammar.left if match['side'] == 'left' else grammar.right}"
    if match["relation"]:
        other = table["nouns"][match["other"]].get(language)
        return f"{said} {grammar.related(_RELATION[match['relation']], other)}" if other else None
    return said


@cache
def _table() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((resources.files("epmvg.stress") / "words.yaml").read_text(encoding="utf-8"))
    for part in ("nouns", "adjectives"):
        read[part] = {word: dict(zip(LANGUAGES, said, strict=True)) for word, said in read[part].items()}
    return read


@cache
def _pattern() -> re.Pattern[str]:
    nouns, adjectives = ("|".join(map(re.escape, _table()[part])) for part in ("nouns", "adjectives"))
    relations = "|".join(_RELATION)
    return re.compile(
        rf"(?:(?P<article>the|an?) )?(?:(?P<adjective>{adjectives}) )?(?P<noun>{nouns})"
        rf"(?: on the (?P<side>left|right)| (?P<relation>{relations}) the (?P<other>{nouns}))?"
    )


def _german(article: str, adjective: str, noun: str) -> str:
    definite, name = _split(noun)
    name = name.partition("|")[0]
    strong = {"der": "er", "die": "e", "das": "es"}[definite]  # also after "ein"
    before, _, after = adjective.partition("~")
    inflected = before.strip() + ("e" if article == "the" else strong) if before else ""
    shown = {"the": definite, "a": "eine" if definite == "die" else "ein", "": ""}[article]
    return _joined(shown, inflected, name, after)


def _german_related(relation: str, noun: str) -> str:
    words = {"left": "links von", "right": "rechts von", "above": "über", "below": "unter"}[relation]
    definite, name = _split(noun)
    return _joined(words, "der" if definite == "die" else "dem", name.rpartition("|")[2])


def _french(article: str, adjective: str, noun: str) -> str:
    definite, name = _split(noun)
    feminine = definite == "la"
    rest = _agreeing(adjective, feminine).replace("~", name) if adjective else name
    if article == "the":
        return _elided(definite, rest)
    return _joined({"a": "une" if feminine else "un", "": ""}[article], rest)


def _french_related(relation: str, noun: str) -> str:
    words = {"left": "à gauche", "right": "à droite", "above": "au-dessus", "below": "en dessous"}[relation]
    named = _elided(*_split(noun))
    return f"{words} du {named[3:]}" if named.startswith("le ") else f"{words} de {named}"


def _elided(definite: str, rest: str) -> str:
    """The article before a vowel or a silent h; the table holds no noun with another h."""
    return f"l'{rest}" if rest[0] in "aeiouhéèêœ" else f"{definite} {rest}"


def _spanish(article: str, adjective: str, noun: str) -> str:
    definite, name = _split(noun)
    feminine = definite == "la"
    rest = _agreeing(adjective, feminine).replace("~", name) if adjective else name
    return _joined({"the": definite, "a": "una" if feminine else "un", "": ""}[article], rest)


def _spanish_related(relation: str, noun: str) -> str:
    words = {"left": "a la izquierda", "right": "a la derecha", "above": "encima", "below": "debajo"}[relation]
    definite, name = _split(noun)
    return f"{words} {'del' if definite == 'el' else 'de la'} {name}"


def _split(noun: str) -> tuple[str, str]:
    definite, _, name = noun.partition(" ")
    return definite, name


def _agreeing(adjective: str, feminine: bool) -> str:
    """Choose of each masculine/feminine pair."""
    return " ".join(word.split("/")[feminine] if "/" in word else word for word in adjective.split())


def _joined(*parts: str) -> str:
    return " ".join(" ".join(parts).split())


_GRAMMARS = {
    "de": _Grammar(_german, _german_related, "links", "rechts"),
    "fr": _Grammar(_french, _french_related, "à gauche", "à droite"),
    "es": _Grammar(_spanish, _spanish_related, "a la izquierda", "a la derecha"),
}
