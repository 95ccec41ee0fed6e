"""Boxes in the words of language models: what each writes is read, and no text whatever breaks the reader."""

from __future__ import annotations

import random

import pytest

from epmvg.scoring.text import LONGEST, read_boxes


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
    ],
)
def test_what_models_write_is_read(text: str, boxes: list[tuple[float, ...]]) -> None:
    assert read_boxes(text) == boxes


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
        "[1,2,3,4]" + " " * LONGEST,
    ],
)
def test_what_is_no_box_is_none(text: str) -> None:
    assert read_boxes(text) == []


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
PIECES += ['"bbox_2d": ', "<box>", "</box>", "9" * 30, "\udc80", "\0", "[[1,2],[3,4]]", "1,2,3,4"]


def nonsense(dice: random.Random) -> str:
    pieces = PIECES + [chr(dice.randrange(0x110000)) for _ in range(5)]
    return "".join(dice.choices(pieces, k=dice.randrange(60)))


@pytest.mark.parametrize("cases", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_text_breaks_the_reader(cases: int) -> None:
    dice = random.Random(cases)
    texts = [nonsense(dice) for _ in range(cases)]
    found = [box for text in texts for box in read_boxes(text)]
    assert found and all(len(box) == 4 and abs(value) < float("inf") for box in found for value in box)


@pytest.mark.parametrize("piece", ["[", "(1,", "[1 ", "<1>", "<loc_1>", "1,2,3,", "[1,2,3,4", " ", "((1,2)"])
def test_long_texts_are_read_to_their_end(piece: str) -> None:
    """As long as may be; a pattern that looks back over and over would take hours here."""
    end = " [5,6,7,8]"
    assert (5, 6, 7, 8) in read_boxes((piece * LONGEST)[: LONGEST - len(end)] + end)
