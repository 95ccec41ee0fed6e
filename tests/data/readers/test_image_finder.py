"""Images are found under the spellings in use, in every reader, and never outside the root."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from epmvg.core.types import InputError
from epmvg.data.readers.image_finder import ImageFinder
from epmvg.data.registry import open_samples


@pytest.mark.parametrize(
    ("lies", "named"),
    [
        ("p/a.jpg", "p\\a.jpg"),
        ("p/a.JPG", "p/a.jpg"),
        ("p/a.jpg", "p/a.JPG"),
        ("COCO_train2014_000000000042.jpg", "000000000042.jpg"),
        ("p/000000000042.jpg", "p/COCO_val2014_000000000042.jpg"),
    ],
)
def test_a_file_is_found_under_another_spelling(tmp_path: Path, lies: str, named: str) -> None:
    (tmp_path / lies).parent.mkdir(exist_ok=True)
    (tmp_path / lies).touch()
    assert ImageFinder(tmp_path)(named, "row 1") == tmp_path / lies


def test_the_name_as_it_stands_comes_first(tmp_path: Path) -> None:
    for name in ("a\\b.jpg", "e.JPG", "e.jpg", "000000000042.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.jpg").touch()
    find = ImageFinder(tmp_path)
    for name in ("a\\b.jpg", "e.JPG", "e.jpg", "000000000042.jpg", "not-there.jpg"):
        assert find(name, "row 1") == tmp_path / name


@pytest.mark.parametrize("name", ["..\\..\\secret.jpg", "\\\\server\\share\\a.jpg"])
def test_no_spelling_leads_out_of_the_root(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="is outside of"):
        ImageFinder(tmp_path / "root")(name, "row 1")


def test_every_reader_finds_images_alike(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.JPG").touch()
    row = {"image": "p\\a.jpg", "phrase": "a cup", "bbox": [1, 2, 3, 4]}
    coco = {"images": [{"id": 1, "file_name": row["image"]}], "annotations": [row | {"image_id": 1}]}
    region = {"phrase": "a cup", "bbox": [1, 2, 4, 6]}
    odvg = {"filename": row["image"], "grounding": {"regions": [region]}}
    for name, content in (("r.jsonl", row), ("c.json", coco), ("o.jsonl", odvg), ("l.json", [row])):
        (tmp_path / name).write_text(json.dumps(content) + "\n")
        assert open_samples(str(tmp_path / name), split=None)[0].image == tmp_path / "p" / "a.JPG", name
