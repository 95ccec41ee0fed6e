"""Boxes in the words of a language model: found by bounded patterns, nothing is evaluated, no number is made up.

Four numbers count as a box where they stand together in brackets ("[1, 2, 3, 4]", "(1,2),(3,4)"), in angle brackets
("<12><34><56><78>"), between tags ("<box>1 2 3 4</box>"), after a name ("bbox: 1 2 3 4"), under keys that say what each
is ('{"x1": 1, "y1": 2, "x2": 3, "y2": 4}'), as location tokens ("<loc_12>" of Florence-2, "<loc0012>" of PaliGemma,
"<bin_12>" of OFA), or are all there is. Four corners of an upright rectangle count as that rectangle; other runs of
points are polygons, not boxes. Cells ("<patch_index_0012><patch_index_0345>" of Kosmos-2) are read where the convention
counts cells, and nothing else is there.

What a system thinks before it answers ("<think>...</think>") is not its answer; "<answer>...</answer>" is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from epmvg.core.types import Box
from epmvg.evaluation.external.coordinates import CELLS, Coordinates

LONGEST = 100_000
"""Letters of an answer that are read; what does not fit is no answer to "where is it?"."""

FARTHEST = 1e9
"""No number beyond it is a coordinate, and products of two stay finite."""

_PLAIN = r"[-+]?(?:[0-9]{1,9}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][-+]?[0-9]{1,3})?"
_NUMBER = f"({_PLAIN})"
_LISTED = rf"[\"']?({_PLAIN})(?:px)?[\"']?"  # in a list: perhaps in quotes
_GAP = r"[\s,;]{1,8}"
_ROOM = r"\s{0,8}"
_FOUR = _GAP.join([_NUMBER] * 4)
_FOUR_LISTED = _GAP.join([_LISTED] * 4)
_FOUR_OF_SEVERAL = r"[\s,]{1,8}".join([_NUMBER] * 4)  # "[1,2,3,4;5,6,7,8]": boxes parted by semicolons
_SCORE = rf"{_GAP}(?:0?\.[0-9]{{1,40}}|[01](?:\.0{{0,40}})?)"
_PATTERNS = (
    rf"[\[({{]{_ROOM}{_FOUR_LISTED}{_ROOM}[\])}}]",
    rf"(?P<scored>[\[({{]){_ROOM}{_FOUR}{_SCORE}{_ROOM}[\])}}]",
    rf"(?:[\[({{]|(?<=;)){_ROOM}{_FOUR_OF_SEVERAL}{_ROOM}(?:[\])}}]|(?=;))",
    rf"<{_NUMBER}>{_ROOM}<{_NUMBER}>{_ROOM}<{_NUMBER}>{_ROOM}<{_NUMBER}>",
    rf">{_ROOM}{_FOUR}{_ROOM}<",
    rf"\bb?box(?:_2d)?[\"']?{_ROOM}[:=]?{_ROOM}{_FOUR}(?![\s,;]{{0,8}}[-+.\d])",
)
_BOX = re.compile("|".join(_PATTERNS))
_BARE = re.compile(_FOUR)

_POINT = re.compile(rf"[\[(]{_ROOM}{_NUMBER}{_GAP}{_NUMBER}{_ROOM}[\])]")
_BETWEEN_POINTS = re.compile(r"[\s,;]{0,8}")
_LOCATION = re.compile(r"<(?:loc_?|bin_)([0-9]{1,4})>")
_BETWEEN_LOCATIONS = re.compile(_ROOM)

_KEYED = (
    ("x1", "y1", "x2", "y2"),
    ("x0", "y0", "x1", "y1"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("left", "top", "right", "bottom"),
    ("x", "y", "width", "height"),
    ("x", "y", "w", "h"),
)
_KEYS = sorted({key.replace("min", "_?min").replace("max", "_?max") for keys in _KEYED for key in keys}, reverse=True)
_KEY = re.compile(  # a quoted number after "=" would be an attribute: <points x1="10" ...>
    rf"(?<![A-Za-z0-9_])[\"']?({'|'.join(_KEYS)})[\"']?{_ROOM}(?::{_ROOM}[\"']?|=)({_PLAIN})[\"']?"
)
_BETWEEN_KEYS = re.compile(r"[\s,;]{0,8}")

_THOUGHT = re.compile(r"<(/?)think(?:ing)?>|◁(/?)think▷", re.IGNORECASE)
_ANSWER = re.compile(r"<answer>|<\|begin_of_box\|>", re.IGNORECASE)
_ANSWER_END = re.compile(r"</answer>|<\|end_of_box\|>", re.IGNORECASE)

_ASCII = {0xFF01 + code: chr(0x21 + code) for code in range(94)}
"""Full-width letters, brackets and commas, as Chinese keyboards write them."""

_CELLS = re.compile(_ROOM.join([r"<patch_index_([0-9]{4})>"] * 2))
_CELLS_A_SIDE = 32


def read_boxes(text: str, convention: Coordinates) -> list[Box]:
    """Return the four numbers of each box in a text, in the convention's order and unit; none where there are none.

    Every pattern is bounded, so the time is proportional to the length of the text.

    Args:
        convention: corners that are named as such come in its order, whatever order they stand in; where it counts
            cells only pairs of cells are read, as columns and rows (x0, y0, x1, y1) of the first and the last.
    """
    if len(text) > LONGEST:
        return []
    answer = _answer_of(text.translate(_ASCII))
    if convention.unit == CELLS:
        return [_corners(int(first), int(last)) for first, last in _CELLS.findall(answer)]
    bare = _BARE.fullmatch(answer.strip())
    if bare:
        found = [(0, _numbers(bare))]
    else:
        scans = (_listed, _points, _locations, _keyed)
        found = sorted((one for scan in scans for one in scan(answer, convention)), key=lambda one: one[0])
    return [box for _, box in found if max(map(abs, box)) <= FARTHEST]


def _answer_of(text: str) -> str:
    """Return what a system answers, without what it thought before; the last of what it marks as its answer."""
    kept: list[str] = []
    start, thinks = 0, False
    for tag in _THOUGHT.finditer(text):
        ends = "/" in tag.group()
        if ends and not thinks:
            kept.clear()  # the thought began before the text does
        elif not ends and not thinks:
            kept.append(text[start : tag.start()])
        start, thinks = tag.end(), not ends
    said = "".join(kept) + ("" if thinks else text[start:])
    *_, last = _ANSWER.split(said)
    return last if last is said else _ANSWER_END.split(last)[0]


def _numbers(match: re.Match[str]) -> Box:
    a, b, c, d = (float(number) for number in match.groups() if number is not None and number not in "[({")
    return a, b, c, d


def _listed(text: str, convention: Coordinates) -> Iterator[tuple[int, Box]]:
    """Find four numbers together; a fifth that is a score is left out where it cannot be a coordinate."""
    for match in _BOX.finditer(text):
        box = _numbers(match)
        if match["scored"] is None or (max(box) > 1 and convention.span != 1):
            yield match.start(), box


def _runs(found: Iterator[re.Match[str]], text: str, between: re.Pattern[str]) -> Iterator[list[re.Match[str]]]:
    """Group matches with nothing else between them."""
    run: list[re.Match[str]] = []
    for match in found:
        if run and not between.fullmatch(text, run[-1].end(), match.start()):
            yield run
            run = []
        run.append(match)
    if run:
        yield run


def _points(text: str, convention: Coordinates) -> Iterator[tuple[int, Box]]:
    """Find pairs of points, and the corners of rectangles."""
    for run in _runs(_POINT.finditer(text), text, _BETWEEN_POINTS):
        values = [float(number) for point in run for number in point.groups()]
        box = (values[0], values[1], values[2], values[3]) if len(run) == 2 else _rectangle(values, convention)
        if box:
            yield run[0].start(), box


def _locations(text: str, convention: Coordinates) -> Iterator[tuple[int, Box]]:
    """Find runs of location tokens: four a box, or the corners of a rectangle."""
    for run in _runs(_LOCATION.finditer(text), text, _BETWEEN_LOCATIONS):
        values = [float(token.group(1)) for token in run]
        rectangle = _rectangle(values, convention)
        if rectangle:
            yield run[0].start(), rectangle
        elif len(values) % 4 == 0:
            for place in range(0, len(values), 4):
                a, b, c, d = values[place : place + 4]
                yield run[place].start(), (a, b, c, d)


def _rectangle(values: Sequence[float], convention: Coordinates) -> Box | None:
    """Return the box whose four corners these eight numbers are, going round, in the convention's order."""
    if len(values) != 8:
        return None
    points = list(zip(values[::2], values[1::2], strict=True))
    first, second = sorted(set(values[::2])), sorted(set(values[1::2]))
    goes_round = all((a[0] == b[0]) != (a[1] == b[1]) for a, b in zip(points, [*points[1:], points[0]], strict=True))
    if len(first) != 2 or len(second) != 2 or len(set(points)) != 4 or not goes_round:
        return None
    corners = (first[0], second[0], first[1], second[1])
    return corners if convention.order == "yxyx" else convention.numbers(corners)


def _keyed(text: str, convention: Coordinates) -> Iterator[tuple[int, Box]]:
    """Find four numbers whose keys say what each is."""
    for run in _runs(_KEY.finditer(text), text, _BETWEEN_KEYS):
        values: dict[str, float] = {}
        start = run[0].start()
        for match in [*run, None]:
            key = match.group(1).replace("_", "") if match else ""
            if match is None or key in values:  # another box begins
                box = _by_key(values)
                if box:
                    yield start, convention.numbers(box)
                values = {}
                start = match.start() if match else start
            if match:
                values[key] = float(match.group(2))


def _by_key(values: dict[str, float]) -> Box | None:
    for keys in _KEYED:
        if values.keys() == set(keys):
            a, b, c, d = (values[key] for key in keys)
            return (a, b, a + c, b + d) if keys[0] == "x" else (a, b, c, d)
    return None


def _corners(first: int, last: int) -> Box:
    """Return columns and rows of two cells, which are numbered row by row."""
    (y0, x0), (y1, x1) = divmod(first, _CELLS_A_SIDE), divmod(last, _CELLS_A_SIDE)
    return float(x0), float(y0), float(x1), float(y1)
