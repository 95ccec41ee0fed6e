"""COCO-style files of other tools: what the annotation states wins over keys that have our names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from epmvg.core.types import InputError, Sample
from epmvg.data.convert import convert_data
from epmvg.data.readers.annotations import Skipped
from epmvg.data.readers.fields import enclosing_box
from epmvg.data.registry import open_samples
from epmvg.data.validation import check

COCO = {
    "images": [{"id": 3, "file_name": "p/a.jpg", "width": 50, "height": 40}],
    "categories": [{"id": 9, "name": "cup"}],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 9, "bbox": [1, 2, 3, 4], "phrase": "red cup", "split": "val"}
    ],
}


def test_category_and_id_of_the_source_are_kept(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(COCO))
    (sample,) = open_samples(str(tmp_path / "rows.json"), split="val", root=tmp_path / "photos")
    assert sample.extra == {"ann_id": 1, "category": "cup"} and sample.image == tmp_path / "photos" / "p" / "a.jpg"


IMAGE = {"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}


NOTE = {"id": 7, "image_id": 1, "bbox": [100, 100, 200, 20], "phrase": "a stick", "split": "train", "category_id": 3}


CATEGORIES = [{"id": 3, "name": "stick"}]


def read(file: Path, *annotations: dict[str, Any], images: list[dict[str, Any]] | None = None) -> list[Sample]:
    file.write_text(json.dumps({"images": images or [IMAGE], "annotations": annotations, "categories": CATEGORIES}))
    return open_samples(str(file), split=None)


def test_attributes_never_override_what_the_annotation_states(tmp_path: Path) -> None:
    attributes = {
        "occluded": False,
        "width": 3,
        "split": "x",
        "phrase": "y",
        "ann_id": 1,
        "category": "z",
        "image": "b",
    }
    (sample,) = read(tmp_path / "c.json", NOTE | {"attributes": attributes})
    assert (sample.split, sample.size, sample.phrase, sample.image.name) == ("train", (640, 480), "a stick", "a.jpg")
    assert sample.extra["ann_id"] == 7 and sample.extra["category"] == "stick" and sample.extra["occluded"] is False
    assert sample.extra["attributes.width"] == 3


def test_size_and_path_of_the_image_win_in_every_format(tmp_path: Path) -> None:
    region = {"phrase": "a stick", "bbox": [1, 2, 3, 4], "attributes": {"width": 3, "image": "b.jpg", "colour": "red"}}
    line = {"filename": "a.jpg", "width": 640, "height": 480, "grounding": {"regions": [region]}}
    (tmp_path / "o.jsonl").write_text(json.dumps(line) + "\n")
    objects = {"phrase": ["a stick"], "bbox": [[1, 2, 3, 4]], "width": [3], "image": ["b.jpg"]}
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "metadata.jsonl").write_text(
        json.dumps({"file_name": "a.jpg", "width": 640, "height": 480, "objects": objects}) + "\n"
    )
    for name in ("o.jsonl", "f"):
        (sample,) = open_samples(str(tmp_path / name), split=None)
        assert sample.size == (640, 480) and sample.image.name == "a.jpg", name


def test_one_id_for_two_images_is_refused_and_ids_may_be_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"images: id 1 stands for 'a\.jpg' and for 'b\.jpg'"):
        read(tmp_path / "c.json", NOTE, images=[IMAGE, IMAGE | {"file_name": "b.jpg"}])
    assert len(read(tmp_path / "c.json", NOTE, images=[IMAGE, IMAGE])) == 1
    (sample,) = read(tmp_path / "c.json", NOTE | {"image_id": "1", "category_id": "3"}, images=[IMAGE | {"id": "1"}])
    assert sample.image.name == "a.jpg" and sample.extra["category"] == "stick"


def test_one_annotation_id_for_two_boxes_is_found_by_the_data_check(tmp_path: Path) -> None:
    read(tmp_path / "c.json", NOTE, NOTE | {"bbox": [5, 6, 70, 80], "phrase": "a dog"})
    assert "id-duplicate" in check(str(tmp_path / "c.json")).issues
    read(tmp_path / "c.json", NOTE, NOTE | {"phrase": "the long stick"})
    assert "id-duplicate" not in check(str(tmp_path / "c.json")).issues


def test_crowds_are_skipped_and_counted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="annotation 1 is a crowd"):
        read(tmp_path / "c.json", NOTE, NOTE | {"iscrowd": 1})
    skipped = Skipped()
    assert len(open_samples(str(tmp_path / "c.json"), split=None, skipped=skipped)) == 1
    assert skipped.counts == {"the annotation is a crowd": 1}


@pytest.mark.parametrize("where", ["attributes", "annotation"])
def test_a_rotated_rectangle_is_read_as_the_upright_one_around_it(tmp_path: Path, where: str) -> None:
    rotated = {"attributes": {"rotation": 90.0}} if where == "attributes" else {"rotation": 90.0}
    (sample,) = read(tmp_path / "c.json", NOTE | rotated)
    assert sample.box == pytest.approx((190, 10, 210, 210)) and sample.extra["rotated"] == 90
    assert "box-rotated" in check(str(tmp_path / "c.json")).issues
    convert_data(str(tmp_path / "c.json"), tmp_path / "again.json")
    assert open_samples(str(tmp_path / "again.json"), split=None) == [sample]  # and is not rotated once more
    assert enclosing_box((0, 0, 10, 10), 45, (5, 5)) == pytest.approx([5 - 50**0.5, 5 - 50**0.5, 200**0.5, 200**0.5])


def test_an_angle_that_is_not_applied_is_found_by_the_data_check(tmp_path: Path) -> None:
    (sample,) = read(tmp_path / "c.json", NOTE | {"attributes": {"angle": 0.5}})
    assert sample.box == (100, 100, 300, 120)
    (issue,) = check(str(tmp_path / "c.json")).issues["box-rotated"]
    assert "not applied" in issue.note


def region(kind: str, value: dict[str, Any], name: str = "r1") -> dict[str, Any]:
    place = {"x": 10.0, "y": 20.0, "width": 50.0, "height": 25.0, "rotation": 0}
    return {"id": name, "type": kind, "original_width": 200, "original_height": 100, "value": place | value}
