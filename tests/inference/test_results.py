"""Answers leave the house: as images, as COCO that is read back, as Label Studio's tasks, for supervision."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from PIL import Image

from epmvg.core.types import InputError, Prediction
from epmvg.data.registry import open_samples
from epmvg.inference.results import Predictions, to_coco, to_label_studio, to_yolo


@pytest.fixture
def predictions(tmp_path: Path) -> list[Predictions]:
    """Two images: two phrases found and one not, and nothing found."""
    images = [Image.new("RGB", size, (90, 120, 140)) for size in ((80, 60), (40, 50))]
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    first = [
        Prediction("the red apple", (4.0, 5.25, 30.0, 40.5), 0.875),
        Prediction("an elephant", (0.0, 0.0, 80.0, 60.0), 0.125, found=False),
        Prediction("her \N{DOG}", (70.0, 10.0, 80.0, 60.0), 0.5),
    ]
    second = [Prediction("a ghost", (1.0, 1.0, 2.0, 2.0), 0.0625, found=False)]
    return [Predictions(first, images[0], name="0.png"), Predictions(second, images[1], name="1.png")]


def test_coco_is_read_back(predictions: list[Predictions], tmp_path: Path) -> None:
    coco = to_coco(predictions)
    assert [image["file_name"] for image in coco["images"]] == ["0.png", "1.png"]  # queries, if in vain
    names = [f"{number}.png" for number in range(9)]  # in their order, also where nothing is found
    empty = [Predictions(list(predictions[1]), predictions[1].image, name=name) for name in names]
    assert [image["file_name"] for image in to_coco(empty)["images"]] == names
    (tmp_path / "found.json").write_text(json.dumps(coco))
    records = open_samples(str(tmp_path / "found.json"), split=None)
    assert [(record.image.name, record.phrase, record.box) for record in records] == [
        ("0.png", one.phrase, one.box) for one in predictions[0].found
    ]


def test_label_studio_boxes_are_percentages(predictions: list[Predictions]) -> None:
    first, second = to_label_studio(predictions, prefix="/data/?d=")
    assert first["data"]["image"] == "/data/?d=0.png" and second["predictions"][0]["result"] == []
    result = first["predictions"][0]["result"]
    texts = {part["id"]: part["value"]["text"] for part in result if part["type"] == "textarea"}
    rectangles = [part for part in result if part["type"] == "rectangle"]
    assert len(rectangles) == 2
    for part, one in zip(rectangles, predictions[0].found, strict=True):
        assert texts[part["id"]] == [one.phrase] and part["score"] == one.score
        x, y, w, h = (part["value"][key] for key in ("x", "y", "width", "height"))
        corners = (x * 0.8, y * 0.6, (x + w) * 0.8, (y + h) * 0.6)
        assert corners == pytest.approx(one.box)


def test_yolo_labels_give_the_boxes_and_phrases_again(predictions: list[Predictions]) -> None:
    files = to_yolo(predictions)
    names = yaml.safe_load(files["data.yaml"])["names"]
    assert names == ["the red apple", "her \N{DOG}"] and files["labels/1.txt"] == ""
    for line, one in zip(files["labels/0.txt"].splitlines(), predictions[0].found, strict=True):
        number, x, y, w, h = map(float, line.split())
        corners = ((x - w / 2) * 80, (y - h / 2) * 60, (x + w / 2) * 80, (y + h / 2) * 60)
        assert names[int(number)] == one.phrase and corners == pytest.approx(one.box, abs=1e-4)


def test_yolo_labels_follow_subfolders_and_are_of_one_image_each() -> None:
    one = Prediction("it", (8.0, 6.0, 40.0, 30.0), 0.5)
    a, b, again = (Predictions([one], "", name=name, size=(80, 60)) for name in ("p/x/a.png", "p/y/a.jpg", "p/x/a.jpg"))
    files = to_yolo([a, b], root="p")
    assert files["labels/x/a.txt"] == files["labels/y/a.txt"] == "0 0.3000000 0.3000000 0.4000000 0.4000000\n"
    with pytest.raises(InputError, match=r"labels/x/a\.txt is of two"):
        to_yolo([a, again], root="p")


def test_drawing_and_cropping_use_found_predictions_only(predictions: list[Predictions]) -> None:
    found, nothing = predictions
    before = found.image.tobytes()
    assert found.draw().size == (80, 60) and found.draw().tobytes() != before == found.image.tobytes()
    assert nothing.draw().tobytes() == nothing.image.tobytes()
    assert found.crop(0).size == (26, 36)
    assert found.crop(2, margin=0.2).size == (20, 60)  # the edge of the image ends the margin
    with pytest.raises(InputError, match="'an elephant' was not found"):
        found.crop(1)


def test_supervision_detections_are_the_found_predictions(
    predictions: list[Predictions], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the names of its documented constructor, and by itself where it is installed."""
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match=r"pip install 'epmvg\[supervision\]'"):
        predictions[0].to_supervision()
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=SimpleNamespace))
    made = predictions[0].to_supervision()
    assert made.xyxy.shape == (2, 4) and made.class_id.tolist() == [0, 2]
    assert made.data["class_name"].tolist() == [one.phrase for one in predictions[0].found]
    assert predictions[1].to_supervision().xyxy.shape == (0, 4)


def test_supervision_itself_accepts_them(predictions: list[Predictions]) -> None:
    pytest.importorskip("supervision")
    assert len(predictions[0].to_supervision()) == 2 and len(predictions[1].to_supervision()) == 0


def test_a_known_size_avoids_opening_the_image() -> None:
    one = Prediction("it", (8.0, 6.0, 40.0, 30.0), 0.5)
    own = Predictions([one], Path("missing.png"), name="a.png", size=(80, 60))
    assert to_coco([own])["images"][0] | {"id": 1} == {"id": 1, "file_name": "a.png", "width": 80, "height": 60}
    assert to_label_studio([own])[0]["predictions"][0]["result"][0]["value"]["x"] == 10
    assert own.to_dict()["width"] == 80


def test_names_are_relative_to_root_and_encoded_in_urls(tmp_path: Path) -> None:
    one = Prediction("it", (8.0, 6.0, 40.0, 30.0), 0.5)
    name = "a b/\N{LATIN SMALL LETTER C WITH CARON}#1?.png"
    (tmp_path / "a b").mkdir()
    Image.new("RGB", (80, 60)).save(tmp_path / name)
    own = Predictions([one], tmp_path / name, size=(80, 60))
    coco = to_coco(own, root=tmp_path)
    assert coco["images"][0]["file_name"] == name
    (tmp_path / "found.json").write_text(json.dumps(coco))
    assert open_samples(str(tmp_path / "found.json"), split=None)[0].image.is_file()  # wherever the program runs
    assert to_coco([own], root=tmp_path / "a b" / "..")["images"][0]["file_name"] == name
    assert to_coco([own], root=tmp_path / "c")["images"][0]["file_name"] == str(tmp_path / name)
    own.name = name
    for prefix, expected in (
        ("/data/local-files/?d=", "a%20b/%C4%8D%231%3F.png"),
        ("https://example.org/", "a%20b/%C4%8D%231%3F.png"),
        ("s3://bucket/", name),
        ("", name),
    ):
        assert to_label_studio(own, prefix=prefix)[0]["data"]["image"] == prefix + expected
