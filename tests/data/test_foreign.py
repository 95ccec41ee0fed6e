"""Files that other tools wrote: what their formats state wins over keys that happen to have our names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from epmvg.core.types import InputError, Prediction, Sample
from epmvg.data.convert import convert_data
from epmvg.data.readers.annotations import Skipped
from epmvg.data.readers.fields import enclosing_box
from epmvg.data.registry import open_samples
from epmvg.data.validation import check
from epmvg.inference.results import Predictions, to_label_studio

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
    (row,) = read(tmp_path / "c.json", NOTE | {"attributes": attributes})
    assert (row.split, row.size, row.phrase, row.image.name) == ("train", (640, 480), "a stick", "a.jpg")
    assert row.extra["ann_id"] == 7 and row.extra["category"] == "stick" and row.extra["occluded"] is False
    assert row.extra["attributes.width"] == 3


def test_what_images_say_is_kept_in_every_merge(tmp_path: Path) -> None:
    region = {"phrase": "a stick", "bbox": [1, 2, 3, 4], "attributes": {"width": 3, "image": "b.jpg", "colour": "red"}}
    line = {"filename": "a.jpg", "width": 640, "height": 480, "grounding": {"regions": [region]}}
    (tmp_path / "o.jsonl").write_text(json.dumps(line) + "\n")
    objects = {"phrase": ["a stick"], "bbox": [[1, 2, 3, 4]], "width": [3], "image": ["b.jpg"]}
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "metadata.jsonl").write_text(
        json.dumps({"file_name": "a.jpg", "width": 640, "height": 480, "objects": objects}) + "\n"
    )
    for name in ("o.jsonl", "f"):
        (row,) = open_samples(str(tmp_path / name), split=None)
        assert row.size == (640, 480) and row.image.name == "a.jpg", name


def test_one_id_for_two_images_is_refused_and_ids_may_be_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"images: id 1 stands for 'a\.jpg' and for 'b\.jpg'"):
        read(tmp_path / "c.json", NOTE, images=[IMAGE, IMAGE | {"file_name": "b.jpg"}])
    assert len(read(tmp_path / "c.json", NOTE, images=[IMAGE, IMAGE])) == 1
    (row,) = read(tmp_path / "c.json", NOTE | {"image_id": "1", "category_id": "3"}, images=[IMAGE | {"id": "1"}])
    assert row.image.name == "a.jpg" and row.extra["category"] == "stick"


def test_annotation_ids_of_different_boxes_are_told_by_the_check(tmp_path: Path) -> None:
    read(tmp_path / "c.json", NOTE, NOTE | {"bbox": [5, 6, 70, 80], "phrase": "a dog"})
    assert "id-duplicate" in check(str(tmp_path / "c.json")).issues
    read(tmp_path / "c.json", NOTE, NOTE | {"phrase": "the long stick"})
    assert "id-duplicate" not in check(str(tmp_path / "c.json")).issues


def test_crowds_are_left_out_and_counted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="annotation 1 is a crowd"):
        read(tmp_path / "c.json", NOTE, NOTE | {"iscrowd": 1})
    skipped = Skipped()
    assert len(open_samples(str(tmp_path / "c.json"), split=None, skipped=skipped)) == 1
    assert skipped.counts == {"the annotation is a crowd": 1}


@pytest.mark.parametrize("where", ["attributes", "annotation"])
def test_a_turned_rectangle_is_read_as_the_upright_one_around_it(tmp_path: Path, where: str) -> None:
    turned = {"attributes": {"rotation": 90.0}} if where == "attributes" else {"rotation": 90.0}
    (row,) = read(tmp_path / "c.json", NOTE | turned)
    assert row.box == pytest.approx((190, 10, 210, 210)) and row.extra["rotated"] == 90
    assert "box-rotated" in check(str(tmp_path / "c.json")).issues
    convert_data(str(tmp_path / "c.json"), tmp_path / "again.json")
    assert open_samples(str(tmp_path / "again.json"), split=None) == [row]  # and is not turned once more
    assert enclosing_box((0, 0, 10, 10), 45, (5, 5)) == pytest.approx([5 - 50**0.5, 5 - 50**0.5, 200**0.5, 200**0.5])


def test_an_angle_that_is_not_applied_is_told(tmp_path: Path) -> None:
    (row,) = read(tmp_path / "c.json", NOTE | {"attributes": {"angle": 0.5}})
    assert row.box == (100, 100, 300, 120)
    (issue,) = check(str(tmp_path / "c.json")).issues["box-rotated"]
    assert "not applied" in issue.note


def task(*results: dict[str, Any], image: str = "/data/local-files/?d=p/my%20a.jpg", **own: Any) -> dict[str, Any]:
    return {"id": 1, "data": {"image": image}, "annotations": [{"result": list(results)} | own]}


def region(kind: str, value: dict[str, Any], name: str = "r1") -> dict[str, Any]:
    place = {"x": 10.0, "y": 20.0, "width": 50.0, "height": 25.0, "rotation": 0}
    return {"id": name, "type": kind, "original_width": 200, "original_height": 100, "value": place | value}


BOX, TEXT = region("rectanglelabels", {"rectanglelabels": ["cup"]}), region("textarea", {"text": ["the red cup"]})


def test_label_studio_exports_are_read(tmp_path: Path) -> None:
    turned = region("rectangle", {"rotation": 90}, "r2")
    again = task(BOX, TEXT) | {"annotations": [{"result": []}, {"result": [BOX, TEXT]}, {"was_cancelled": True}]}
    tasks = [task(BOX, TEXT, turned, region("textarea", {"text": "a stick"}, "r2")), again, task(BOX), task()]
    (tmp_path / "ls.json").write_text(json.dumps(tasks))
    rows = open_samples(str(tmp_path / "ls.json"), split=None)
    assert [row.phrase for row in rows] == ["the red cup", "a stick", "the red cup", "cup"]
    assert rows[0].box == rows[2].box == (20, 20, 120, 45) and rows[0].size == (200, 100)
    assert rows[0].image == tmp_path / "p" / "my a.jpg"
    assert rows[1].box == pytest.approx((-5, 20, 20, 120)) and rows[1].extra["rotated"] == 90
    for image, name in (("http://[x", "[x"), ("/data/upload/3/a.jpg", "a.jpg"), ("http://host/p/b%20c.jpg", "b c.jpg")):
        (tmp_path / "ls.json").write_text(json.dumps([task(BOX, TEXT, image=image)]))
        assert open_samples(str(tmp_path / "ls.json"), split=None)[0].image.name == name


def test_what_we_write_for_label_studio_is_read_back_once_people_have_saved_it(tmp_path: Path) -> None:
    found = [Prediction("the red cup", (20.0, 30.0, 60.0, 45.0), 0.9)]
    about = Predictions(found, Image.new("RGB", (80, 60)), name="p/my #1.png")
    for prefix in ("", "/data/local-files/?d="):
        (written,) = to_label_studio([about], prefix)
        saved = {"id": 1, "data": written["data"], "annotations": written["predictions"]}
        (tmp_path / "ls.json").write_text(json.dumps([saved]))
        (row,) = open_samples(str(tmp_path / "ls.json"), split=None)
        assert row.phrase == "the red cup" and row.box == pytest.approx(found[0].box) and row.size == (80, 60)
        assert prefix or row.image == tmp_path / "p" / "my #1.png"


def test_a_rectangle_without_words_is_one_malformed_row(tmp_path: Path) -> None:
    (tmp_path / "ls.json").write_text(json.dumps([task(BOX, TEXT), task(region("rectangle", {}))]))
    skipped = Skipped()
    assert len(open_samples(str(tmp_path / "ls.json"), split=None, skipped=skipped)) == 1
    assert "has a rectangle and no text" in str(skipped)


def test_image_folders_with_several_metadata_files_and_split_names(tmp_path: Path) -> None:
    places = {".": "", "train": "train", "valid": "val", "data/dev": "val", "data/testing": "test", "testA": "testA"}
    for number, place in enumerate(places):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        line = {"file_name": f"{number}.jpg", "phrase": "a cup", "bbox": [1, 2, 3, 4]}
        (tmp_path / place / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    rows = open_samples(str(tmp_path), split=None)
    assert {row.image.relative_to(tmp_path).parent.as_posix(): row.split for row in rows} == places


def test_a_folder_without_annotations_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no annotations\.jsonl and no metadata\.jsonl"):
        open_samples(str(tmp_path), split=None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"images": [IMAGE], "annotations": [NOTE], "categories": 3}, '"categories" is 3'),
        ({"images": [IMAGE], "annotations": [NOTE | {"rotation": "x"}]}, "\"rotation\" is 'x'"),
        ({"images": [IMAGE], "annotations": [NOTE | {"image_id": True}]}, '"image_id" is True'),
        ({"images": [IMAGE], "annotations": [NOTE | {"attributes": [1]}]}, '"attributes" is'),
        ({"detections": []}, "is neither COCO-style"),
        ([task(BOX, TEXT) | {"data": {"number": 3}}], "names no image"),
        ([{"phrase": "a cup"}], 'neither "image" nor "img_id"'),
    ],
)
def test_malformed_content_is_one_sentence(tmp_path: Path, content: Any, words: str) -> None:
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=re.escape(words)):
        open_samples(str(tmp_path / "c.json"), split="none")


def test_only_names_of_splits_tell_the_split_of_a_list_of_sentences(tmp_path: Path) -> None:
    content = json.dumps([{"img_id": "a_70", "sents": "red cup", "bbox": [1, 2, 3, 4]}])
    for name, split in (("mine.json", ""), ("my_rows.json", ""), ("refcoco_testA.json", "testA")):
        (tmp_path / name).write_text(content)
        assert open_samples(str(tmp_path / name), split=None)[0].split == split
