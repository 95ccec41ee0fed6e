"""Coordinate conventions, and boxes in the text of vision-language models."""

from __future__ import annotations

import random

import pytest

from epmvg.core.types import InputError
from epmvg.evaluation.external_formats import MAX_TEXT, ORDERS, Coordinates, parse_boxes

PIXELS = Coordinates.named("pixels:xyxy")


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("[[0.1, 0.2, 0.5, 0.6]]", [(0.1, 0.2, 0.5, 0.6)]),
        ("<ref>dog</ref><box>(120,300),(450,800)</box>", [(120, 300, 450, 800)]),
        ("<|box_start|>(120,300),(450,800)<|box_end|>", [(120, 300, 450, 800)]),
        ('```json\n[{"bbox_2d": [12, 34.5, 56, 78], "label": "dog"}]\n```', [(12, 34.5, 56, 78)]),
        ("dog<loc_123><loc_45><loc_678><loc_999>", [(123, 45, 678, 999)]),
        ("<loc0123><loc0045><loc0678><loc1023> dog", [(123, 45, 678, 1023)]),
        ("{<12><34><56><78>}", [(12, 34, 56, 78)]),
        (" .5 0 1 1e-1\n", [(0.5, 0, 1, 0.1)]),
        ("I see 2 dogs at (1, 2, 3, 4) and [5,6,7,8].", [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ("[-3, 0, 4, 5]", [(-3, 0, 4, 5)]),
        ("two at [[1,2,3,4;5,6,7,8]]", [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ("<box>85 250 385 730</box>", [(85, 250, 385, 730)]),
        ("<bin_85> <bin_250> <bin_385> <bin_730>", [(85, 250, 385, 730)]),
        ("cup<loc_1><loc_2><loc_3><loc_4><loc_5><loc_6><loc_7><loc_8>", [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ("<think>maybe [1, 2, 3, 4], no</think><answer>[[85, 250, 385, 730]]</answer>", [(85, 250, 385, 730)]),
        ("[1, 2, 3, 4] is the bowl.</think>\n[5, 6, 7, 8]", [(5, 6, 7, 8)]),
        ("Like [0,0,9,9]. <answer>[5,6,7,8]</answer> as asked in [0,0,9,9]", [(5, 6, 7, 8)]),
        ("Or [0,0,9,9]: <|begin_of_box|>[[5,6,7,8]]<|end_of_box|>", [(5, 6, 7, 8)]),
    ],
)
def test_formats_of_models_are_parsed(text: str, boxes: list[tuple[float, ...]]) -> None:
    assert parse_boxes(text, PIXELS) == boxes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "There is no dog.",
        "1 dog, 2 cats, 3 birds and 4 cows",
        "[1, 2, 3]",
        "[1, 2, 3, 4, 5]",
        "[1; 2; 3; 4; 5; 6]",
        "<quad>1 2 3 4 5 6 7 8</quad>",
        "[1e999, 0, 1, 1]",
        "[nan, 0, 1, 1]",
        "[-1e300, 5, 1e300, 5]",
        "(1,2)",
        "<loc_1><loc_2><loc_3>",
        "__import__('os').system('false')",
        "[" + "9" * 5000 + ",1,2,3]",
        "[1,2,3,4]" + " " * MAX_TEXT,
        "[[85, 250], [385, 250], [385, 730]]",
        "[(0.461, 0.527), (0.498, 0.521), (0.486, 0.559)]",
        "[[1, 2], [4, 3], [6, 8], [0, 7]]",
        "[[1, 2], [3, 4], [1, 4], [3, 2]]",
        "cup<loc_52><loc_333><loc_932><loc_333><loc_932><loc_774>",
        "<think>it may be [1, 2, 3, 4]",
        "<think>[1, 2, 3, 4]</think> I see none.",
        '{"x1": 10, "y1": 20}, {"x2": 30, "y2": 40}',
        "x1=10, y1=20, x2=30, y2=40",
        "bbox: 10 20 30 40",
        "[10.5, 20, 30, 40, 0.9]",
        "[[85, 250], [385, 250], [385, 730], [85, 730]]",
    ],
)
def test_other_text_has_no_box(text: str) -> None:
    assert parse_boxes(text, PIXELS) == []


@pytest.mark.parametrize(
    ("order", "box"),
    [("xyxy", (1, 2, 30, 40)), ("yxyx", (2, 1, 40, 30)), ("xywh", (1, 2, 31, 42)), ("cxcywh", (-14, -18, 16, 22))],
)
def test_numbers_are_converted_to_corners(order: str, box: tuple[float, ...]) -> None:
    assert parse_boxes("[1, 2, 30, 40]", Coordinates("pixels", order)) == [box]
    assert order in ORDERS


@pytest.mark.parametrize("name", ["", "0-1", "0-1:", ":xyxy", "0-10:xyxy", "pixels:cxcy", "0-1:xyxy:"])
def test_unknown_conventions_are_rejected(name: str) -> None:
    with pytest.raises(InputError, match="is not known"):
        Coordinates.named(name)


PIECES = [
    "[",
    "]",
    "(",
    ")",
    "{",
    "}",
    "<",
    ">",
    "<loc_",
    "<loc0",
    "12",
    "0.5",
    "-",
    ".",
    "e9",
    ",",
    " ",
    "\n",
    "\u0661",
]
PIECES += ["<think>", "</think>", "<answer>", '"x1": 3, ', '"y1": 4', "x2=5", "y2=6", "x1=1,y1=2,x2=3,y2=4"]
PIECES += ['"bbox_2d": ', "<box>", "</box>", "9" * 30, "\udc80", "\0", "[[1,2],[3,4]]", "1,2,3,4"]


def random_text(rng: random.Random) -> str:
    pieces = PIECES + [chr(rng.randrange(0x110000)) for _ in range(5)]
    return "".join(rng.choices(pieces, k=rng.randrange(60)))


@pytest.mark.parametrize("cases", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_text_breaks_the_parser(cases: int) -> None:
    rng = random.Random(cases)
    texts = [random_text(rng) for _ in range(cases)]
    found = [box for text in texts for box in parse_boxes(text, PIXELS)]
    assert found and all(len(box) == 4 and abs(value) < float("inf") for box in found for value in box)


@pytest.mark.parametrize(
    "piece",
    [
        "[",
        "(1,",
        "[1 ",
        "<1>",
        "<loc_1>",
        "1,2,3,",
        "[1,2,3,4",
        " ",
        "((1,2)",
        "<think>",
        "x1=1,",
        "[1,2],",
        "</think>",
        "'",
    ],
)
def test_long_texts_take_linear_time(piece: str) -> None:
    """At the maximum length; a pattern that backtracks would take hours."""
    end = "</think> [5,6,7,8]"
    assert (5, 6, 7, 8) in parse_boxes((piece * MAX_TEXT)[: MAX_TEXT - len(end)] + end, PIXELS)
    end = "| [5,6,7,8]"
    found = parse_boxes((piece * MAX_TEXT)[: MAX_TEXT - len(end)] + end, PIXELS)
    assert ((5, 6, 7, 8) in found) != (piece == "<think>")
