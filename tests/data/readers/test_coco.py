"""COCO-style files of other tools: what the annotation states wins over keys that have our names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from epmvg.core.types import InputError, Sample
from epmvg.data.convert import convert_data
from epmvg.data.readers.annotations import MALFORMED, Skipped
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
    region = {"phrase": "a stick", "bbox": [1, 2, 3, 4], "attributes": {"width": 3, "image": "b.jpg", "color": "red"}}
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


def test_one_id_for_two_images_is_rejected_and_ids_may_be_text(tmp_path: Path) -> None:
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
    assert skipped.counts == {MALFORMED: 1}


def test_cvat_exports_have_the_phrase_among_the_attributes(tmp_path: Path) -> None:
    """CVAT's COCO has no other place for a text, and imports attributes: ours stands there too."""
    exported = {"id": 1, "image_id": 1, "category_id": 3, "segmentation": [], "area": 4000.0, "iscrowd": 0}
    exported |= {"bbox": [100.0, 100.0, 200.0, 20.0]}
    attributes = {"occluded": False, "rotation": 0.0, "track_id": 0, "keyframe": True}
    for key in ("phrase", "caption"):
        (sample,) = read(tmp_path / "c.json", exported | {"attributes": attributes | {key: "a red stick"}})
        assert (sample.phrase, sample.box) == ("a red stick", (100, 100, 300, 120))
        assert sample.extra["track_id"] == 0 and "phrase" not in sample.extra
    sentences = {"sentences": ["a stick", {"sent": "the red one"}]}
    assert [one.phrase for one in read(tmp_path / "c.json", exported | {"attributes": sentences})] == [
        "a stick",
        "the red one",
    ]
    with pytest.raises(InputError, match=r'has no "phrase"\. Give each annotation, or its attributes'):
        read(tmp_path / "c.json", exported | {"attributes": attributes})
    (tmp_path / "ours.jsonl").write_text(json.dumps({"image": "a.jpg", "phrase": "a stick", "bbox": [1, 2, 3, 4]}))
    convert_data(str(tmp_path / "ours.jsonl"), tmp_path / "ours.json")
    (annotation,) = json.loads((tmp_path / "ours.json").read_text())["annotations"]
    (sample,) = read(tmp_path / "c.json", exported | {"attributes": attributes | annotation["attributes"]})
    assert sample.phrase == "a stick"
