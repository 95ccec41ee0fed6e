"""Answers leave the house: as pictures, as COCO that is read back, as Label Studio's tasks, for supervision."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from epmvg.core.types import InputError, Prediction
from epmvg.data.registry import open_samples
from epmvg.inference.results import Predictions, to_coco, to_label_studio


@pytest.fixture
def answers(tmp_path: Path) -> list[Predictions]:
    """Two pictures: two phrases found and one not, and nothing found."""
    pictures = [Image.new("RGB", size, (90, 120, 140)) for size in ((80, 60), (40, 50))]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    first = [
        Prediction("the red apple", (4.0, 5.25, 30.0, 40.5), 0.875),
        Prediction("an elephant", (0.0, 0.0, 80.0, 60.0), 0.125, found=False),
        Prediction("her \N{DOG}", (70.0, 10.0, 80.0, 60.0), 0.5),
    ]
    second = [Prediction("a ghost", (1.0, 1.0, 2.0, 2.0), 0.0625, found=False)]
    return [Predictions(first, pictures[0], name="0.png"), Predictions(second, pictures[1], name="1.png")]


def test_coco_is_read_back_as_rows(answers: list[Predictions], tmp_path: Path) -> None:
    coco = to_coco(answers)
    assert [image["file_name"] for image in coco["images"]] == ["0.png", "1.png"]  # asked, if in vain
    (tmp_path / "found.json").write_text(json.dumps(coco))
    records = open_samples(str(tmp_path / "found.json"), split=None)
    assert [(record.image.name, record.phrase, record.box) for record in records] == [
        ("0.png", one.phrase, one.box) for one in answers[0].found
    ]


def test_label_studio_s_per_cents_are_the_box(answers: list[Predictions]) -> None:
    first, second = to_label_studio(answers, prefix="/data/?d=")
    assert first["data"]["image"] == "/data/?d=0.png" and second["predictions"][0]["result"] == []
    result = first["predictions"][0]["result"]
    texts = {part["id"]: part["value"]["text"] for part in result if part["type"] == "textarea"}
    rectangles = [part for part in result if part["type"] == "rectangle"]
    assert len(rectangles) == 2
    for part, one in zip(rectangles, answers[0].found, strict=True):
        assert texts[part["id"]] == [one.phrase] and part["score"] == one.score
        x, y, w, h = (part["value"][key] for key in ("x", "y", "width", "height"))
        corners = (x * 0.8, y * 0.6, (x + w) * 0.8, (y + h) * 0.6)
        assert corners == pytest.approx(one.box)


def test_drawing_and_cutting_leave_the_picture_and_skip_what_was_not_found(answers: list[Predictions]) -> None:
    found, nothing = answers
    before = found.image.tobytes()
    assert found.draw().size == (80, 60) and found.draw().tobytes() != before == found.image.tobytes()
    assert nothing.draw().tobytes() == nothing.image.tobytes()
    assert found.crop(0).size == (26, 36)
    assert found.crop(2, margin=0.2).size == (20, 60)  # the edge of the picture ends the margin
    with pytest.raises(InputError, match="'an elephant' was not found"):
        found.crop(1)


def test_supervision_gets_what_was_found(answers: list[Predictions], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the names of its documented constructor, and by itself where it is installed."""
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match=r"pip install 'epmvg\[supervision\]'"):
        answers[0].to_supervision()
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=SimpleNamespace))
    made = answers[0].to_supervision()
    assert made.xyxy.shape == (2, 4) and made.class_id.tolist() == [0, 2]
    assert made.data["class_name"].tolist() == [one.phrase for one in answers[0].found]
    assert answers[1].to_supervision().xyxy.shape == (0, 4)


def test_supervision_itself_takes_it(answers: list[Predictions]) -> None:
    pytest.importorskip("supervision")
    assert len(answers[0].to_supervision()) == 2 and len(answers[1].to_supervision()) == 0


def test_a_known_size_spares_opening_the_picture() -> None:
    one = Prediction("it", (8.0, 6.0, 40.0, 30.0), 0.5)
    about = Predictions([one], Path("missing.png"), name="a.png", size=(80, 60))
    assert to_coco([about])["images"][0] | {"id": 1} == {"id": 1, "file_name": "a.png", "width": 80, "height": 60}
    assert to_label_studio([about])[0]["predictions"][0]["result"][0]["value"]["x"] == 10
    assert about.to_dict()["width"] == 80


def test_names_are_relative_to_a_stated_root_and_encoded_in_addresses(tmp_path: Path) -> None:
    one = Prediction("it", (8.0, 6.0, 40.0, 30.0), 0.5)
    name = "a b/\N{LATIN SMALL LETTER C WITH CARON}#1?.png"
    (tmp_path / "a b").mkdir()
    Image.new("RGB", (80, 60)).save(tmp_path / name)
    about = Predictions([one], tmp_path / name, size=(80, 60))
    coco = to_coco(about, root=tmp_path)
    assert coco["images"][0]["file_name"] == name
    (tmp_path / "found.json").write_text(json.dumps(coco))
    assert open_samples(str(tmp_path / "found.json"), split=None)[0].image.is_file()  # wherever the program runs
    assert to_coco([about], root=tmp_path / "a b" / "..")["images"][0]["file_name"] == name
    assert to_coco([about], root=tmp_path / "c")["images"][0]["file_name"] == str(tmp_path / name)
    about.name = name
    for prefix, expected in (
        ("/data/local-files/?d=", "a%20b/%C4%8D%231%3F.png"),
        ("https://example.org/", "a%20b/%C4%8D%231%3F.png"),
        ("s3://bucket/", name),
        ("", name),
    ):
        assert to_label_studio(about, prefix=prefix)[0]["data"]["image"] == prefix + expected
