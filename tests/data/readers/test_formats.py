"""Any format is recognised and read as it means; round trips lose nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import ANNOTATION, NOTE, RECTANGLE, TEXT, coco, lines, region, task
from strategies import TARGETS, samples, under

from epmvg.core.types import InputError, Sample
from epmvg.data.convert import convert_data
from epmvg.data.readers.formats import write_file
from epmvg.data.registry import open_samples


@settings(max_examples=40, deadline=None)
@given(st.lists(samples(), min_size=1, max_size=8))
@pytest.mark.parametrize("kind", TARGETS)
def test_a_round_trip_loses_nothing(tmp_path_factory: pytest.TempPathFactory, kind: str, rows: list[Sample]) -> None:
    folder = tmp_path_factory.getbasetemp() / kind
    rows = under(folder, rows)
    target = folder / TARGETS[kind]
    assert write_file(target, rows, folder) == folder
    assert open_samples(str(target), split=None) == rows


def test_the_excerpts_survive_every_format(tmp_path: Path, shared: Path) -> None:
    for name, root in (
        ("refcoco", "."),
        ("flickr30k", "flickr30k"),
        ("referit", "referitgame"),
        ("transvg-unc", "transvg_index"),
    ):
        source = (shared / "formats" / root).resolve()
        rows = open_samples(name, split=None, root=source)
        for target in TARGETS.values():
            done = convert_data(name, tmp_path / target, root=source)
            assert done["samples"] == len(rows) and done["root"] == str(source)
            assert open_samples(str(tmp_path / target), split=None, root=source) == rows


COCO = {
    "images": [{"id": 3, "file_name": "p/a.jpg", "width": 50, "height": 40}],
    "categories": [{"id": 9, "name": "cup"}],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 9, "bbox": [1, 2, 3, 4], "phrase": "red cup", "split": "val"}
    ],
}


REGION = {"phrase": "cups", "bbox": [[1, 2, 4, 6], [10, 2, 13, 6]], "tokens_positive": [[4, 8]]}


ODVG = {"filename": "p/a.jpg", "height": 40, "width": 50, "grounding": {"caption": "two cups", "regions": [REGION]}}


@pytest.mark.parametrize(
    ("content", "phrases", "first"),
    [
        (COCO, ["red cup"], (1, 2, 4, 6)),
        (ODVG, ["cups"], (1, 2, 13, 6)),
    ],
)
def test_foreign_json_reads_as_it_means(
    tmp_path: Path, content: Any, phrases: list[str], first: tuple[int, ...]
) -> None:
    (tmp_path / "rows_val.json").write_text(json.dumps(content))
    rows = open_samples(str(tmp_path / "rows_val.json"), split=None)
    assert [row.phrase for row in rows] == phrases
    assert rows[0].box == first and rows[0].size == (50, 40) and rows[0].image.name == "a.jpg"


@pytest.mark.parametrize(
    ("target", "words"),
    [("t.xml", "names no format"), ("t.csv", "End it in .odvg.jsonl, .jsonl")],
)
def test_an_unknown_format_is_named(tmp_path: Path, squares: Path, target: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        convert_data(str(squares), tmp_path / target)
    (tmp_path / target).write_text("x")
    with pytest.raises(InputError, match="is a file of no known format"):
        open_samples(str(tmp_path / target), split=None)


IMAGE = {"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}


STICK = {"id": 7, "image_id": 1, "bbox": [100, 100, 200, 20], "phrase": "a stick", "split": "train", "category_id": 3}


def test_a_folder_without_annotations_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no annotations\.jsonl and no metadata\.jsonl"):
        open_samples(str(tmp_path), split=None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"images": [IMAGE], "annotations": [STICK], "categories": 3}, '"categories" is 3'),
        ({"images": [IMAGE], "annotations": [STICK | {"rotation": 30}]}, "has a rotated box"),
        ({"images": [IMAGE], "annotations": [STICK | {"attributes": {"rotation": 30.5}}]}, "has a rotated box"),
        ({"images": [IMAGE], "annotations": [STICK | {"image_id": True}]}, '"image_id" is True'),
        ({"images": [IMAGE], "annotations": [STICK | {"attributes": [1]}]}, '"attributes" is'),
        ({"detections": []}, "is neither COCO-style"),
        ([task(region("rectangle", {"rotation": 90}), TEXT)], "is not an upright rectangle"),
        ([task(RECTANGLE, TEXT) | {"data": {"number": 3}}], "names no image"),
    ],
)
def test_malformed_content_is_one_sentence(tmp_path: Path, content: Any, words: str) -> None:
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=re.escape(words)):
        open_samples(str(tmp_path / "c.json"), split="none")


@pytest.mark.parametrize("name", ["rows.JSONL", "rows.json", "rows.Json"])
def test_json_and_jsonl_are_recognised_by_content(tmp_path: Path, name: str) -> None:
    for content in (
        lines(ANNOTATION, ANNOTATION),
        json.dumps([ANNOTATION, ANNOTATION], indent=1).encode(),
        coco(NOTE, NOTE),
        lines([ANNOTATION, ANNOTATION]),
    ):
        (tmp_path / name).write_bytes(content)
        assert [sample.phrase for sample in open_samples(str(tmp_path / name), split=None)] == ["a cup", "a cup"]
