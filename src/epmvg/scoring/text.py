"""Boxes in the words of a language model: found by bounded patterns, nothing is evaluated, no number is made up.

Four numbers count as a box where they stand together in brackets ("[1, 2, 3, 4]", "(1,2),(3,4)"), in angle brackets
("<12><34><56><78>"), between tags ("<box>1 2 3 4</box>"), as location tokens ("<loc_12>" of Florence-2, "<loc0012>" of
PaliGemma, "<bin_12>" of OFA), or are all there is. Cells ("<patch_index_0012><patch_index_0345>" of Kosmos-2) are read
where the convention counts cells, and nothing else is there.
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
_FOUR_OF_SEVERAL = r"[\s,]{1,8}".join([_NUMBER] * 4)  # "[1,2,3,4;5,6,7,8]": boxes parted by semicolons
_POINT = rf"[\[(]{_ROOM}{_NUMBER}{_GAP}{_NUMBER}{_ROOM}[\])]"
_PATTERNS = (
    rf"[\[({{]{_ROOM}{_FOUR}{_ROOM}[\])}}]",
    rf"(?:[\[({{]|(?<=;)){_ROOM}{_FOUR_OF_SEVERAL}{_ROOM}(?:[\])}}]|(?=;))",
    rf"{_POINT}[\s,;]{{0,8}}{_POINT}",
    rf"<{_NUMBER}>{_ROOM}<{_NUMBER}>{_ROOM}<{_NUMBER}>{_ROOM}<{_NUMBER}>",
    _ROOM.join([r"<(?:loc_?|bin_)([0-9]{1,4})>"] * 4),
    rf">{_ROOM}{_FOUR}{_ROOM}<",
)
_BOX = re.compile("|".join(_PATTERNS))
_BARE = re.compile(_FOUR)

_CELLS = re.compile(_ROOM.join([r"<patch_index_([0-9]{4})>"] * 2))
_CELLS_A_SIDE = 32


def read_boxes(text: str, *, cells: bool = False) -> list[Box]:
    """Return the four numbers of each box in a text, in its order and unit; none where there are none.

    Every pattern is bounded, so the time is proportional to the length of the text.

    Args:
        cells: read pairs of cells instead: the columns and rows (x0, y0, x1, y1) of the first and the last.
    """
    if len(text) > LONGEST:
        return []
    if cells:
        return [_corners(int(first), int(last)) for first, last in _CELLS.findall(text)]
    bare = _BARE.fullmatch(text.strip())
    matches = [bare] if bare else _BOX.finditer(text)
    found = []
    for match in matches:
        a, b, c, d = (float(number) for number in match.groups() if number is not None)
        if max(map(abs, (a, b, c, d))) <= FARTHEST:
            found.append((a, b, c, d))
    return found


def _corners(first: int, last: int) -> Box:
    """Return columns and rows of two cells, which are numbered row by row."""
    (y0, x0), (y1, x1) = divmod(first, _CELLS_A_SIDE), divmod(last, _CELLS_A_SIDE)
    return float(x0), float(y0), float(x1), float(y1)
