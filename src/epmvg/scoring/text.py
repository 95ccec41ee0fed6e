"""Boxes in the words of a language model: found by bounded patterns, nothing is evaluated, no number is made up.

Four numbers count as a box where they stand together in brackets ("[1, 2, 3, 4]", "(1,2),(3,4)"), in angle brackets
("<12><34><56><78>"), as location tokens ("<loc_12>" of Florence-2, "<loc0012>" of PaliGemma), or are all there is.
"""

from __future__ import annotations

import re

from epmvg.types import Box

LONGEST = 100_000
"""Letters of an answer that are read; what does not fit is no answer to "where is it?"."""

FARTHEST = 1e9
"""No number beyond it is a coordinate, and products of two stay finite."""

_NUMBER = r"([-+]?(?:[0-9]{1,9}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][-+]?[0-9]{1,3})?)"
_GAP = r"[\s,;]{1,8}"
_ROOM = r"\s{0,8}"
_FOUR = _GAP.join([_NUMBER] * 4)
_POINT = rf"[\[(]{_ROOM}{_NUMBER}{_GAP}{_NUMBER}{_ROOM}[\])]"
_PATTERNS = (
    rf"[\[({{]{_ROOM}{_FOUR}{_ROOM}[\])}}]",
    rf"{_POINT}[\s,;]{{0,8}}{_POINT}",
    rf"<{_NUMBER}>{_ROOM}<{_NUMBER}>{_ROOM}<{_NUMBER}>{_ROOM}<{_NUMBER}>",
    _ROOM.join([r"<loc_?([0-9]{1,4})>"] * 4),
)
_BOX = re.compile("|".join(_PATTERNS))
_BARE = re.compile(_FOUR)


def read_boxes(text: str) -> list[Box]:
    """Return the four numbers of each box in a text, in its order and unit; none where there are none.

    Every pattern is bounded, so the time is proportional to the length of the text.
    """
    if len(text) > LONGEST:
        return []
    bare = _BARE.fullmatch(text.strip())
    matches = [bare] if bare else _BOX.finditer(text)
    found = []
    for match in matches:
        a, b, c, d = (float(number) for number in match.groups() if number is not None)
        if max(map(abs, (a, b, c, d))) <= FARTHEST:
            found.append((a, b, c, d))
    return found
