"""Label Studio's export is read, also of what we wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from layouts import RECTANGLE, TEXT, region, task
from PIL import Image

from epmvg.core.types import InputError, Prediction
from epmvg.data.readers.annotations import Skipped
from epmvg.data.registry import open_samples
from epmvg.inference.results import Predictions, to_label_studio


def test_label_studio_exports_are_read(tmp_path: Path) -> None:
    other = region("rectangle", {"x": 50.0}, "r2")
    again = task(RECTANGLE, TEXT) | {
        "annotations": [{"result": []}, {"result": [RECTANGLE, TEXT]}, {"was_cancelled": True}]
    }
    tasks = [
        task(RECTANGLE, TEXT, other, region("textarea", {"text": "a stick"}, "r2")),
        again,
        task(RECTANGLE),
        task(),
    ]
    (tmp_path / "ls.json").write_text(json.dumps(tasks))
    samples = open_samples(str(tmp_path / "ls.json"), split=None)
    assert [sample.phrase for sample in samples] == ["the red cup", "a stick", "the red cup", "cup"]
    assert samples[0].box == samples[2].box == (20, 20, 120, 45) and samples[0].size == (200, 100)
    assert samples[0].image == tmp_path / "p" / "my a.jpg"
    assert samples[1].box == (100, 20, 200, 45)
    for image, name in (("http://[x", "[x"), ("/data/upload/3/a.jpg", "a.jpg"), ("http://host/p/b%20c.jpg", "b c.jpg")):
        (tmp_path / "ls.json").write_text(json.dumps([task(RECTANGLE, TEXT, image=image)]))
        assert open_samples(str(tmp_path / "ls.json"), split=None)[0].image.name == name


def test_saved_predictions_that_we_wrote_are_read_back(tmp_path: Path) -> None:
    found = [Prediction("the red cup", (20.0, 30.0, 60.0, 45.0), 0.9)]
    about = Predictions(found, Image.new("RGB", (80, 60)), name="p/my #1.png")
    for prefix in ("", "/data/local-files/?d="):
        (written,) = to_label_studio([about], prefix)
        saved = {"id": 1, "data": written["data"], "annotations": written["predictions"]}
        for task_ in (written, saved, written | {"annotations": written["predictions"], "predictions": []}):
            (tmp_path / "ls.json").write_text(json.dumps([task_]))
            (sample,) = open_samples(str(tmp_path / "ls.json"), split=None)
            assert (sample.phrase, sample.size) == ("the red cup", (80, 60))
            assert sample.box == pytest.approx(found[0].box)
            assert prefix or sample.image == tmp_path / "p" / "my #1.png"
    (tmp_path / "ls.json").write_text(json.dumps([written | {"annotations": []}]))  # exported without a review
    with pytest.raises(InputError, match="no usable annotations"):
        open_samples(str(tmp_path / "ls.json"), split=None)


def test_a_rectangle_without_text_is_one_malformed_annotation(tmp_path: Path) -> None:
    (tmp_path / "ls.json").write_text(json.dumps([task(RECTANGLE, TEXT), task(region("rectangle", {}))]))
    skipped = Skipped()
    assert len(open_samples(str(tmp_path / "ls.json"), split=None, skipped=skipped)) == 1
    assert "has a rectangle and no text" in str(skipped)
