"""JSONL: samples survive a round trip, unusable ones are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from epmvg.core.types import InputError
from epmvg.data.readers.annotations import Skipped
from epmvg.data.readers.formats import write_file
from epmvg.data.registry import open_samples

GOOD = {"image": "a.jpg", "phrase": "a cup", "bbox": [1, 2, 3, 4], "width": 10, "height": 10, "extra": [1]}


def write(folder: Path, *rows: object) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def test_samples_survive_a_round_trip(tmp_path: Path, squares: Path) -> None:
    samples = open_samples(str(squares), split=None)
    copy = squares.parent / "copy.jsonl"
    write_file(copy, samples, copy.parent)
    assert open_samples(str(copy), split=None) == samples
    assert json.loads(copy.read_text().splitlines()[0]) == json.loads(squares.read_text().splitlines()[0])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**GOOD, "bbox": [1, 2, 0, 4]}, "empty or inverted"),
        ({**GOOD, "bbox": [11, 2, 3, 4]}, "outside its image"),
        ({**GOOD, "bbox": [1, 2, 3]}, "four numbers"),
        ({**GOOD, "bbox": [1, 2, 3, float("nan")]}, "not a number"),
        ({**GOOD, "phrase": "  "}, "phrase is empty"),
        ({**GOOD, "phrase": "word " * 500}, "500 words"),
        ({"image": "a.jpg", "bbox": [1, 2, 3, 4]}, "phrase"),
        ("{cut", "not JSON"),
        ("[1]", "not a JSON object"),
    ],
)
def test_unusable_annotations_are_named(tmp_path: Path, row: object, words: str) -> None:
    file = write(tmp_path, GOOD, row)
    with pytest.raises(InputError, match=rf"line 2.*{words}|{words}"):
        open_samples(str(file), split=None)


def test_skipped_annotations_are_counted_by_reason(tmp_path: Path) -> None:
    skipped = Skipped()
    file = write(tmp_path, GOOD, {**GOOD, "bbox": [1, 2, -1, 4]}, {**GOOD, "phrase": ""}, {**GOOD, "phrase": ""})
    assert len(open_samples(str(file), split=None, skipped=skipped)) == 1
    assert skipped.counts == {"the box is empty or inverted": 1, "the phrase is empty": 2}
    assert "2 annotations skipped" in str(skipped) and "line 3" in str(skipped)


def test_annotations_of_an_image_share_its_path(tmp_path: Path) -> None:
    one, other = open_samples(str(write(tmp_path, GOOD, GOOD | {"phrase": "its handle"})), split=None)
    assert one.image is other.image and one.image == tmp_path / "a.jpg"


def test_a_missing_file_and_a_missing_split_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.jsonl"):
        open_samples(str(tmp_path / "nowhere.jsonl"), split=None)
    with pytest.raises(InputError, match=r"split 'test'.*there are train"):
        open_samples(str(write(tmp_path, {**GOOD, "split": "train"})), split="test")


def test_a_split_by_another_key_survives_a_round_trip(tmp_path: Path) -> None:
    row = {**GOOD, "split": "testA", "mini_split": "test"}
    samples = open_samples(str(write(tmp_path, row)), split="test", split_key="mini_split")
    assert (samples[0].split, samples[0].extra["split"]) == ("test", "testA")
    write_file(tmp_path / "copy.jsonl", samples, (tmp_path / "copy.jsonl").parent)
    for key in ("split", "mini_split"):
        (copy,) = open_samples(str(tmp_path / "copy.jsonl"), split="test", split_key=key)
        assert copy.extra["attributes.split"] == "testA"
