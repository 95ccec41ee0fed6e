"""Composed referring expressions: true of the annotations, and flipped with the image."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from epmvg.cli import main
from epmvg.core.types import Box, InputError, Sample
from epmvg.data import compose
from epmvg.data.compose import LIMITS, LONGEST, compose_expressions
from epmvg.data.readers.flickr30k import Mention, parse_sentence
from epmvg.data.readers.formats import write_file
from epmvg.data.registry import open_samples
from epmvg.data.side_words import has_clear_sides, names_place, swap_sides

WIDTH, HEIGHT = 400, 200


def write_image(root: Path, name: str, sentences: list[str], boxes: dict[str, list[Box]]) -> None:
    """Write the annotations of an image of 400 x 200 pixels; boxes of each chain, from 0."""
    objects = "".join(
        f"<object><name>{chain}</name><bndbox><xmin>{a + 1}</xmin><ymin>{b + 1}</ymin><xmax>{c}</xmax><ymax>{d}</ymax>"
        "</bndbox></object>"
        for chain, each in boxes.items()
        for a, b, c, d in each
    )
    for folder in ("Annotations", "Sentences"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    (root / "Sentences" / f"{name}.txt").write_text("\n".join(sentences))
    (root / "train.txt").write_text(name)


def composed(root: Path, seed: int, form: str = "") -> list[tuple[str, Box]]:
    samples = compose_expressions(root, open_samples("flickr30k", split="train", root=root), seed=seed)
    return [(sample.phrase, sample.box) for sample in samples if form in ("", sample.extra["composed"])]


def drawn(root: Path, form: str = "") -> dict[str, Box]:
    """All that a hundred seeds compose."""
    return {phrase: box for seed in range(100) for phrase, box in composed(root, seed, form)}


HIKERS: dict[str, list[Box]] = {"1": [(10, 20, 60, 120), (110, 20, 160, 120), (210, 20, 260, 120), (310, 20, 360, 120)]}


def test_spans_relate_a_thing_to_what_follows_it_in_its_sentence(tmp_path: Path) -> None:
    sentence = (
        "[/EN#1/people A man] in [/EN#2/clothing a red shirt] and [/EN#3/clothing black pants] is throwing "
        "[/EN#4/other a ball] to [/EN#5/people two dogs] in [/EN#6/scene a park] ."
    )
    man: Box = (100, 20, 200, 180)
    boxes: dict[str, list[Box]] = {
        "1": [man],
        "2": [(110, 50, 180, 100)],
        "4": [(0, 0, 20, 20)],
        "5": [(1, 1, 9, 9)] * 2,
    }
    write_image(tmp_path, "7", [sentence], boxes)
    found = drawn(tmp_path, "span")
    assert set(found.values()) == {man}  # the shirt throws nothing, the ball is "to" nobody, the dogs are two
    bare = {re.sub(r"\b(a|the) ", "", phrase).replace("guy", "man").replace("dude", "man") for phrase in found}
    assert bare == {
        "man in red shirt",
        "man in red",
        "man in black pants",
        "man in black",
        "man in red shirt and black pants",
        "man in red shirt and black",
        "man in red and black pants",
        "man in red and black",
        "man throwing ball",
        "man in black pants throwing ball",
        "man in black throwing ball",
    }
    assert any(phrase.startswith("a man") for phrase in found) and any(phrase.startswith("man") for phrase in found)


@pytest.mark.parametrize(
    ("between", "relation"),
    [
        ("is holding", "holding"),
        ("who is standing next to", "standing next to"),
        ("in", "in"),
        ("and", None),
        ("holds", None),
        ("in , and", None),
        ("", None),
    ],
)
def test_words_between_two_phrases_relate_them_or_not(between: str, relation: str | None) -> None:
    assert compose._relation(between) == relation


def test_positions_are_those_of_the_boxes(tmp_path: Path) -> None:
    write_image(tmp_path, "7", ["[/EN#1/people Four hikers] rest ."], HIKERS)
    found = drawn(tmp_path, "position")
    first, second, third, fourth = HIKERS["1"]
    for phrase, box in found.items():
        side = "left" if "left" in phrase else "right"
        nth = next((n for n, words in enumerate(("second", "2nd"), 1) if words in phrase), 0)
        assert ("right" in phrase) != ("left" in phrase) and "middle" not in phrase, phrase
        assert box == ((second if nth else first) if side == "left" else (third if nth else fourth)), phrase
    assert {"left hiker", "hiker on right", "second hiker from left", "2nd person from the right"} <= set(found)
    assert all("hikers" not in phrase for phrase in found)


def test_the_middle_of_three_and_what_is_above(tmp_path: Path) -> None:
    boxes: dict[str, list[Box]] = {str(i): [box] for i, box in enumerate(HIKERS["1"][:3], 1)}
    boxes |= {"8": [(0, 0, 30, 30)], "9": [(2, 150, 32, 180)]}
    lines = [f"[/EN#{i}/animals a dog] sits ." for i in (1, 2, 3)] + [f"[/EN#{i}/other A cup] ." for i in (8, 9)]
    write_image(tmp_path, "7", lines, boxes)
    found = drawn(tmp_path, "position")
    assert found["middle dog"] == boxes["2"][0] and found["top cup"] == boxes["8"][0]
    assert found["bottom cup"] == boxes["9"][0] and "left cup" not in found and "top dog" not in found


def test_nothing_is_told_apart_where_a_box_is_missing_close_or_shared(tmp_path: Path) -> None:
    two = ["[/EN#1/people a man] and [/EN#2/people a man] .", "[/EN#3/people Men] rest"]
    left, right = (10, 20, 60, 120), (300, 20, 350, 120)
    write_image(tmp_path / "missing", "7", two, {"1": [left], "2": [right]})
    write_image(tmp_path / "close", "7", two[:1], {"1": [left], "2": [(30, 20, 80, 120)]})
    write_image(tmp_path / "shared", "7", two[:1], {"1": [left], "2": [(12, 20, 62, 120)]})
    write_image(tmp_path / "apart", "7", two[:1], {"1": [left], "2": [right]})
    write_image(
        tmp_path / "group", "7", ["[/EN#1/people a man] , [/EN#2/people a group of men]"], {"1": [left], "2": [right]}
    )
    for folder in ("missing", "close", "shared", "group"):
        assert not drawn(tmp_path / folder, "position"), folder
    assert drawn(tmp_path / "apart", "position")["left man"] == left


def test_the_biggest_is_clearly_larger_than_the_others(tmp_path: Path) -> None:
    lines = [f"[/EN#{i}/animals a dog] sits ." for i in (1, 2, 3)]
    big: Box = (200, 0, 390, 190)
    write_image(tmp_path / "clear", "7", lines, {"1": [(0, 0, 50, 50)], "2": [(80, 0, 140, 50)], "3": [big]})
    found = drawn(tmp_path / "clear", "size")
    assert set(found.values()) == {big} and {"biggest dog", "the largest dog", "closest dog"} <= set(found)
    assert not any("bigger" in phrase for phrase in found)  # of three
    write_image(
        tmp_path / "alike", "7", lines, {"1": [(0, 0, 50, 50)], "2": [(80, 0, 140, 50)], "3": [(200, 0, 260, 60)]}
    )
    assert not drawn(tmp_path / "alike", "size")


def test_every_wording_of_a_side_is_mirrored_with_its_image() -> None:
    for count in range(2, 6):
        for place in range(count):
            mirrored = compose._templates(count - 1 - place, count, 0)
            for wording in compose._templates(place, count, 0):
                phrase = wording.format(kind="dog")
                assert has_clear_sides(phrase) and names_place(phrase), phrase
                assert swap_sides(phrase) in [other.format(kind="dog") for other in mirrored], phrase


def test_expressions_are_samples_like_others(tmp_path: Path) -> None:
    """Scaled to the image, in its split, limited, the same for a seed, and read back from JSONL."""
    write_image(tmp_path, "7", ["[/EN#1/people Four hikers] rest ."], HIKERS)
    whole = open_samples("flickr30k", split="train", root=tmp_path)[0]
    half = Sample(whole.image, "", (0, 0, 1, 1), "train", "7#0:0-2/EN#1", (WIDTH // 2, HEIGHT // 2))
    other = Sample(Path("coco.jpg"), "left guy", (0, 0, 1, 1), "train", "refcoco-3")
    found = compose_expressions(tmp_path, [half, half, other], seed=3)
    assert found == compose_expressions(tmp_path, [half], seed=3)
    assert found != compose_expressions(tmp_path, [half], seed=4)
    assert {sample.image for sample in found} == {whole.image} and {sample.split for sample in found} == {"train"}
    assert {tuple(np.array(sample.box) * 2) for sample in found} <= set(HIKERS["1"])
    assert len(found) == len({sample.phrase for sample in found}) <= sum(LIMITS.values())
    assert all(len(sample.phrase.split()) <= LONGEST for sample in found)
    write_file(tmp_path / "composed.jsonl", found, tmp_path)
    assert open_samples(str(tmp_path / "composed.jsonl"), split=None) == found


def test_a_folder_without_annotations_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no Sentences folder"):
        compose_expressions(tmp_path, [])


def test_sentences_are_parsed_in_order() -> None:
    line = "[/EN#1/people/other Two dogs] sit on [/EN#0/notvisual the way] ."
    assert list(parse_sentence(line)) == [
        *(Mention("1", ("people", "other"), "Two dogs"), "sit", "on", Mention("0", ("notvisual",), "the way"), ".")
    ]


@pytest.mark.slow
def test_training_photos_give_tens_of_thousands(shared: Path, tmp_path: Path) -> None:
    """A sample of the real set: a handful an image, every box within its image."""
    from test_registry import official_flickr

    root = official_flickr(shared, tmp_path, ["val"])
    found = compose_expressions(root, open_samples("flickr30k", split="val", root=root))
    forms = [str(sample.extra["composed"]) for sample in found]
    assert len(found) > 3000 and all(forms.count(form) > 100 for form in LIMITS)
    for sample in found:
        assert sample.size is not None
        x0, y0, x1, y1 = sample.box
        assert 0 <= x0 < x1 <= sample.size[0] and 0 <= y0 < y1 <= sample.size[1]


def test_the_command_adds_to_the_training_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, sentence = tmp_path / "flickr", "[/EN#1/people Three hikers] walk on [/EN#2/scene a path] ."
    for split, name in (("val", "7"), ("test", "8"), ("train", "9")):
        write_image(root, name, [sentence], HIKERS)
        (root / f"{split}.txt").write_text(name)
    with pytest.raises(SystemExit) as ended:
        main(["data", "compose", str(root), str(tmp_path / "all.jsonl")])
    assert ended.value.code == 0 and "position" in capsys.readouterr().out
    samples = open_samples(str(tmp_path / "all.jsonl"), split=None, root=root)
    added = [sample for sample in samples if "composed" in sample.extra]
    assert added and {sample.split for sample in added} == {"train"} and len(samples) == len(added) + 3
    with pytest.raises(SystemExit) as ended:
        main(["data", "compose", str(root), str(tmp_path / "all.txt")])
    assert ended.value.code == 2
