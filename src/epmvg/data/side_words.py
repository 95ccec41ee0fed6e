"""Words for sides and places in phrases: swapped when an image is flipped, and a reason not to flip or crop it."""

from __future__ import annotations

import re

_SIDE = r"\b(left|right)(?=(?:most|hand|handed|side|sided|er|est|wards?)?\b)"
_SIDE_WORD = re.compile(_SIDE, re.IGNORECASE)
_PLACE_WORD = re.compile(
    rf"{_SIDE}|\b(top|bottom|middle|mid|cent(er|re|ral)|upper|lower|corner|edge)(most)?\b", re.IGNORECASE
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TOKEN = re.compile(r"[^\W_]+|[^\w\s]")

_BEFORE_A_SIDE = _words("""
    on to from at in of and or the far top bottom upper lower front back middle center centre corner edge row most
    very extreme farthest furthest directly first second third fourth 1st 2nd 3rd 4th his her its their my your our s
    facing faces looking looks pointing points turned turning turns leaning leans heading walking moving going
""")
"""Words before a side: "on the left", "far right", "her right arm"."""

_AFTER_A_SIDE = _words("of side hand hands handed most corner edge half end part third quarter portion , . ; : /")
"""Words after a side, whatever is before it: "the man left of the car", "zebra right, eating"."""

_AFTER_NO_SIDE = _words("""
    behind next in on at by over under above below beneath underneath beside near before after between against
    across through around along inside outside into onto up down off out away alone there here now to from as about
    where when angle angles way thing time size order
""")
"""Words after "left" and "right" in another sense: "right behind", "left on the plate", "the right way"."""

_BEFORE_A_SIDE_ALWAYS = _words("on far top bottom upper lower")  # "bottom right behind the cup"
_BEFORE_NO_SIDE = _words("all is are was were be been being has have had just got gets")
_ON_THE = re.compile(r"\b(on|to|at|in|from) the$")
_SUBJECTS = _words("who that which what he she they we i you")  # before the verb: "the man who left"
_REMAINING = re.compile(r"\b(last|only|remaining|still|nothing|any|no|all|what)\b", re.IGNORECASE)  # "last slice left"


def swap_sides(phrase: str) -> str:
    """Swap left and right as words ("leftmost" too, "bright" never), keeping their case.

    A phrase in which one of them may not be a side ("right behind the car") is returned as it is.
    """
    if not has_clear_sides(phrase):
        return phrase
    return _SIDE_WORD.sub(lambda match: cased_like(match[1], "right" if match[1].lower() == "left" else "left"), phrase)


def has_clear_sides(phrase: str) -> bool:
    """Return whether each "left" and "right" of a phrase, if any, surely is a side.

    True of "the man on the right", "leftmost cup" and "bike left"; False of "right behind the car", "all right", "the
    man who left" and "the last slice left".
    """
    return all(_is_side(phrase, match) for match in _SIDE_WORD.finditer(phrase))


def _is_side(phrase: str, match: re.Match[str]) -> bool:
    if phrase[match.end() : match.end() + 1].isalpha():  # leftmost, righthand
        return True
    before, after = _TOKEN.findall(phrase[: match.start()].lower()), _TOKEN.findall(phrase[match.end() :].lower())
    previous, following = before[-1] if before else "", after[0] if after else ""
    if previous == "s" and len(before) > 2 and before[-3] in _SUBJECTS:  # "who's left"
        previous = "is"
    if following == "-" and len(after) > 1:
        return after[1] in _AFTER_A_SIDE
    if following in _AFTER_A_SIDE:
        is_rest = following == "of" and previous not in _BEFORE_A_SIDE and _REMAINING.search(phrase) is not None
        is_verb = previous in _SUBJECTS and not following.isalpha()
        return previous != "all" and not is_rest and not is_verb
    if following in _AFTER_NO_SIDE:
        return previous in _BEFORE_A_SIDE and (
            previous in _BEFORE_A_SIDE_ALWAYS or _ON_THE.search(" ".join(before)) is not None
        )
    if previous in _BEFORE_A_SIDE or previous in ("", ",", ".", ";", ":"):
        return True
    return not following and previous not in _BEFORE_NO_SIDE | _SUBJECTS and not _REMAINING.search(phrase)


def cased_like(word: str, other: str) -> str:
    """Return another word in the case of a word: lower, Capitalized or UPPER."""
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other


def names_place(phrase: str) -> bool:
    """Return whether a phrase names a place in the image, so that cropping could make it false."""
    return _PLACE_WORD.search(phrase) is not None
