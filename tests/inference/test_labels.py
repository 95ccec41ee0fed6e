"""Labels: which boxes are kept, that interrupted work is reused, and that a training accepts the file as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import save_detector

import epmvg
from epmvg.core.calibration import CONFIDENCE_FILE, Calibration
from epmvg.core.types import InputError, Sample
from epmvg.data.registry import open_samples
from epmvg.data.validation import check
from epmvg.inference.labels import label_images
from epmvg.inference.predictor import Predictor
from epmvg.models.factory import create_model, save
from epmvg.models.grounder import Grounder

Row = dict[str, Any]

PHRASES = ("the red square", "the blue square")


@pytest.fixture
def run(tiny: Grounder, tmp_path: Path) -> Path:
    save(tiny, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def phrases(squares: Path) -> Path:
    """Two phrases for each of the twelve images."""
    file = squares.parent / "phrases.jsonl"
    lines = [{"image": f"{number}.png", "phrases": list(PHRASES)} for number in range(12)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def calibrate(run: Path, threshold: float | None = None, shift: float = 0.0) -> None:
    calibration = Calibration("beta", 1.0, 1.0, shift, threshold=threshold)
    (run / CONFIDENCE_FILE).write_text(calibration.dump())


def confidences(run: Path, folder: Path) -> dict[tuple[str, str], float]:
    predictor = Predictor(run)
    return {
        (f"{number}.png", one.phrase): one.score
        for number in range(12)
        for one in predictor(folder / f"{number}.png", PHRASES)
    }


def labels(out: Path) -> list[Sample]:
    return open_samples(str(out), split=None)


def test_boxes_are_those_of_the_model_and_a_training_accepts_them(run: Path, phrases: Path, tmp_path: Path) -> None:
    done = label_images(tmp_path, tmp_path / "my.jsonl", [run], phrases=phrases, min_score=0.0)
    samples = labels(tmp_path / "my.jsonl")
    assert (done["labeled"], done["kept"], done["images"], done["dropped"]) == (24, 24, 12, {})
    assert [(one.image.name, one.phrase) for one in samples] == [
        (f"{number}.png", phrase) for number in range(12) for phrase in PHRASES
    ]
    predictor = Predictor(run)
    for sample in samples[::7]:
        (alone,) = predictor(sample.image, sample.phrase)
        assert sample.box == pytest.approx(alone.box, abs=0.02) and sample.size == (80, 60)
        assert sample.extra["score"] == pytest.approx(alone.score, abs=1e-3) and sample.weight == 1
    assert {sample.split for sample in samples} == {"train", "val"}
    assert check(str(tmp_path / "my.jsonl")).usable
    tiny = ["model=tiny-resnet", "model.pretrained=false", "model.dense_head=true", "model.similarity=true"]
    tiny += ["train.cache_features=false", "train.epochs=1", f"data.name={tmp_path / 'my.jsonl'}"]
    recipe = epmvg.Recipe.load("few-photos", *tiny, "model.init_from=null", "train.warmup_steps=0")
    assert (epmvg.train(recipe, tmp_path / "student") / "model.safetensors").exists()


@pytest.mark.parametrize("threshold", [None, 0.4])
def test_calibrated_confidences_are_weights_and_have_a_threshold(
    run: Path, phrases: Path, tmp_path: Path, threshold: float | None
) -> None:
    middle = torch.tensor(sorted(confidences(run, tmp_path).values())[11:13]).mean()
    calibrate(run, threshold, shift=float(torch.logit(torch.tensor(threshold or 0.5)) - torch.logit(middle)))
    found = confidences(run, tmp_path)
    done = label_images(tmp_path, tmp_path / "my.jsonl", [run], phrases=phrases)
    samples = labels(tmp_path / "my.jsonl")
    kept = {key: value for key, value in found.items() if value >= (threshold or 0.5)}
    assert done["is_weighted"] and 6 < len(samples) < 18
    assert {(one.image.name, one.phrase) for one in samples} == kept.keys()
    for one in samples:
        assert one.weight == pytest.approx(found[one.image.name, one.phrase], abs=1e-3) == one.extra["score"]


def test_without_a_calibration_the_lowest_quarter_is_left_out(run: Path, phrases: Path, tmp_path: Path) -> None:
    done = label_images(tmp_path, tmp_path / "my.jsonl", [run], phrases=phrases)
    assert sum(done["dropped"].values()) in (5, 6) and not done["is_weighted"]
    (reason,) = done["dropped"]
    assert "the lowest quarter, as the model is not calibrated" in reason
    scores = sorted(confidences(run, tmp_path).values())
    assert min(one.extra["score"] for one in labels(tmp_path / "my.jsonl")) == pytest.approx(scores[5], abs=1e-3)


def test_a_second_model_has_to_agree(run: Path, phrases: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)
    save(create_model("tiny-resnet", dense_head=True, similarity=True).eval(), tmp_path / "other")
    whole = label_images(tmp_path, tmp_path / "same.jsonl", [run, run], phrases=phrases, min_score=0.0)
    assert whole["kept"] == 24
    pair = {name: Predictor(tmp_path / name) for name in ("run", "other")}
    agreed = []
    for number in range(12):
        boxes = {name: predictor(tmp_path / f"{number}.png", PHRASES) for name, predictor in pair.items()}
        for one, other in zip(boxes["run"], boxes["other"], strict=True):
            (a, b, c, d), (e, f, g, h) = one.box, other.box
            shared = max(0, min(c, g) - max(a, e)) * max(0, min(d, h) - max(b, f))
            if shared >= 0.5 * ((c - a) * (d - b) + (g - e) * (h - f) - shared):
                agreed.append((f"{number}.png", one.phrase))
    models = [run, tmp_path / "other"]
    if not agreed:
        with pytest.raises(InputError, match=r"None of the 24 boxes is kept \(24 on which the models disagree"):
            label_images(tmp_path, tmp_path / "my.jsonl", models, phrases=phrases, min_score=0.0)
        return
    done = label_images(tmp_path, tmp_path / "my.jsonl", models, phrases=phrases, min_score=0.0)
    assert [(one.image.name, one.phrase) for one in labels(tmp_path / "my.jsonl")] == agreed
    assert sum(done["dropped"].values()) == 24 - len(agreed)


class KilledError(Exception):
    pass


def killed_at(batches: int) -> Callable[..., Any]:
    """Return a `predict_batch` that raises in place of batch number `batches`."""
    real, calls = Predictor.predict_batch, [0]

    def counted(self: Predictor, *arguments: Any, **options: Any) -> Any:
        if calls[0] == batches:
            raise KilledError
        calls[0] += 1
        return real(self, *arguments, **options)

    return counted


@pytest.mark.parametrize(("killed", "rows"), [(1, 8), (4, 32)], ids=["first model", "second model"])
def test_interrupted_work_of_both_models_is_reused(
    run: Path, phrases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: int, rows: int
) -> None:
    """With another threshold too, and to the same file."""
    save(create_model("tiny-resnet", dense_head=True, similarity=True).eval(), tmp_path / "other")
    options: Row = {"phrases": phrases, "batch_size": 4, "runs": [run, tmp_path / "other"]}
    out = tmp_path / "my.jsonl"
    monkeypatch.setattr(Predictor, "predict_batch", killed_at(killed))
    with pytest.raises(KilledError):
        label_images(tmp_path, out, **options)
    assert not out.exists() and len((tmp_path / "my.jsonl.part").read_text().splitlines()) == rows
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"None of the 24 boxes is kept .*Lower --min-score"):
        label_images(tmp_path, out, **options, min_score=1.0)
    monkeypatch.setattr(Predictor, "predict_batch", killed_at(0))
    options["runs"] = [run]
    done = label_images(tmp_path, out, **options)
    assert done["resumed"] == 24 and not (tmp_path / "my.jsonl.part").exists()
    monkeypatch.undo()
    label_images(tmp_path, tmp_path / "fresh.jsonl", **options)
    assert out.read_bytes() == (tmp_path / "fresh.jsonl").read_bytes()


def test_another_grounder_labels_too(phrases: Path, tmp_path: Path) -> None:
    owl = save_detector("owlv2", tmp_path / "owl")
    label_images(tmp_path, tmp_path / "my.jsonl", [owl], phrases=phrases, min_score=0.0)
    predictor = Predictor(owl)
    for one in labels(tmp_path / "my.jsonl")[::9]:
        assert one.box == pytest.approx(predictor(one.image, one.phrase)[0].box, abs=0.02)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_captions_of_csv_give_different_phrases_once(run: Path, squares: Path, tmp_path: Path) -> None:
    lines = [f'{number}.png,"A red square, and the blue square."' for number in range(12)]
    (tmp_path / "captions.csv").write_text("image,caption\n" + "\n".join([*lines, "0.png,a Red  square"]) + "\n")
    label_images(tmp_path, tmp_path / "my.jsonl", [run], captions=tmp_path / "captions.csv", min_score=0.0)
    found = [one.phrase for one in labels(tmp_path / "my.jsonl")]
    assert found == ["A red square", "the blue square"] * 12


def test_what_cannot_be_labeled_is_counted(run: Path, phrases: Path, tmp_path: Path) -> None:
    more = [{"image": "none.png", "phrase": "it"}, {"image": "0.png", "phrase": " "}]
    more.append({"image": "1.png", "phrase": "\N{DOG FACE}"})
    phrases.write_text(phrases.read_text() + "".join(json.dumps(line) + "\n" for line in more))
    done = label_images(tmp_path, tmp_path / "my.jsonl", [run], phrases=phrases, min_score=0.0)
    assert done["dropped"] == {"whose image or phrase cannot be used": 2, "without a known word": 1}
    assert done["kept"] == 24 and "cannot be used: the phrase is empty" in done["first_error"]


def test_mistakes_write_nothing(run: Path, phrases: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("file,text\n0.png,it\n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "latin.csv").write_bytes(b"image,phrase\n0.png,caf\xe9\n")
    (tmp_path / "outside.jsonl").write_text('{"image": "../0.png", "phrase": "it"}\n')
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    out = tmp_path / "my.jsonl"
    calls: list[tuple[Row, str]] = [
        ({"runs": []}, "Give one, or two"),
        ({"runs": [tmp_path / "nope"]}, "nope"),
        ({"phrases": None}, "Give --phrases FILE or --captions FILE"),
        ({"captions": phrases}, "Give --phrases FILE or --captions FILE"),
        ({"phrases": tmp_path / "bad.csv"}, r"bad\.csv line 2"),
        ({"phrases": tmp_path / "latin.csv"}, "is not CSV in UTF-8"),
        ({"phrases": tmp_path / "empty.jsonl"}, "has no phrases"),
        ({"phrases": tmp_path / "outside.jsonl"}, "is outside of"),
        ({"images": tmp_path / "none"}, "is not a folder"),
        ({"out": phrases}, "overwrite the input"),
        ({"out": tmp_path / "my.json"}, r"\.jsonl"),
        ({"min_score": 2.0}, "from 0 to 1"),
    ]
    for change, words in calls:
        arguments: Row = {"images": tmp_path, "out": out, "runs": [run], "phrases": phrases} | change
        with pytest.raises(InputError, match=words):
            label_images(**arguments)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
