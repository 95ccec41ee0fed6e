"""One malformed annotation costs one annotation in every reader: counted, named, rejected where none may be skipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from layouts import ANNOTATION, BOX, MALFORMED_FILES, lines

from epmvg.core.types import InputError
from epmvg.data.readers.annotations import MALFORMED, Skipped
from epmvg.data.registry import open_samples


@pytest.mark.parametrize("name", MALFORMED_FILES)
def test_one_malformed_annotation_is_counted_and_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(MALFORMED_FILES[name]())
    source = str(file.parent if name.startswith("folder") else file)
    skipped = Skipped()
    assert len(open_samples(source, split=None, skipped=skipped)) in (1, 2)
    assert skipped.counts == {MALFORMED: 1}
    assert str(file) in skipped.first[MALFORMED]
    with pytest.raises(InputError) as caught:
        open_samples(source, split=None)
    assert str(caught.value) == skipped.first[MALFORMED]


def test_published_layouts_skip_one_annotation_too(tmp_path: Path) -> None:
    instances = {
        "images": [{"id": 3, "file_name": "a.jpg"}, {"id": 4, "file_name": 7}],
        "annotations": [{"id": 1, "bbox": BOX}, {"id": 2, "bbox": "wide"}],
        "categories": [{"id": 9, "name": "cup"}],
    }
    ref = {"image_id": 3, "ann_id": 1, "category_id": 9, "split": "val", "sentences": [{"sent": "it", "sent_id": 5}]}
    (tmp_path / "refcoco").mkdir()
    (tmp_path / "refcoco" / "instances.json").write_text(json.dumps(instances))
    refs = [ref, ref | {"image_id": 4}, ref | {"ann_id": 2}, ref | {"ann_id": 8}, 7]
    (tmp_path / "refcoco" / "refs(unc).json").write_text(json.dumps(refs))
    skipped = Skipped()
    assert len(open_samples("refcoco", split="val", root=tmp_path, skipped=skipped)) == 1
    assert skipped.counts == {MALFORMED: 4}
    for name, content in (
        ("bbox", {"1_1": BOX, "1_2": [1, 2]}),
        ("imsize", {"1.jpg": [50, 40]}),
        ("query_val", {"1_1": ["a cup"], "1_2": ["a dog"], "1_3": "a tree"}),
    ):
        (tmp_path / f"referit_{name}.json").write_text(json.dumps(content))
    skipped = Skipped()
    assert len(open_samples("referit", split="val", root=tmp_path, skipped=skipped)) == 1
    assert skipped.counts == {MALFORMED: 2}


def test_a_file_of_malformed_annotations_names_the_first(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(lines(1, 2))
    with pytest.raises(InputError, match=r"no usable annotations: 2 annotations skipped: .* \(first: .*line 1 is"):
        open_samples(str(file), split=None, skipped=Skipped())


def test_numbers_in_text_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(lines(ANNOTATION | {"bbox": ["1", "2.5", 3, "4"], "width": "640", "height": "480"}))
    (sample,) = open_samples(str(file), split=None)
    assert sample.box == (1, 2.5, 4, 6.5) and sample.size == (640, 480)


def test_splits_are_compared_as_text_and_existing_ones_are_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(lines(ANNOTATION | {"split": 0}, ANNOTATION | {"split": "1"}))
    assert len(open_samples(str(file), split="0")) == len(open_samples(str(file), split="1")) == 1
    file.write_bytes(lines(ANNOTATION | {"split": "training"}, ANNOTATION | {"split": "valid"}))
    with pytest.raises(InputError, match=r"of split 'val': there are training, valid"):
        open_samples(str(file), split="val")
    file.write_bytes(lines({key: ANNOTATION[key] for key in ("image", "phrase", "bbox")}))
    with pytest.raises(InputError, match=r"none names a split \(`epmvg data split` adds them\)"):
        open_samples(str(file), split="val")


@pytest.mark.parametrize(
    "weight", [0, -1, 9e-7, 1.1e6, 1e300, 1e-300, float("nan"), float("inf"), True, "heavy", [1], 10**400]
)
def test_a_weight_is_a_positive_number_in_range(tmp_path: Path, weight: object) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ANNOTATION | {"weight": 0.25}) + "\n" + json.dumps(ANNOTATION) + "\n")
    assert [sample.weight for sample in open_samples(str(file), split=None)] == [0.25, 1.0]
    file.write_text(json.dumps(ANNOTATION | {"weight": weight}) + "\n")
    with pytest.raises(
        InputError, match=r'rows.jsonl line 1: "weight" is .*, it must be a number from 0.000001 to 1000000'
    ):
        open_samples(str(file), split=None)
