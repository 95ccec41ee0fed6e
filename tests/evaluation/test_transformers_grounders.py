"""Grounders of the transformers library are evaluated, calibrated, perturbed and compared as runs are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectors import save_detector
from PIL import Image

from epmvg.cli import main
from epmvg.core.boxes import paired_iou
from epmvg.core.calibration import read_calibration
from epmvg.core.types import InputError
from epmvg.data.registry import open_samples
from epmvg.evaluation.calibration import calibrate
from epmvg.evaluation.evaluate import evaluate
from epmvg.evaluation.robustness import measure_robustness
from epmvg.inference.batch import predict_many
from epmvg.inference.predictor import Predictor
from epmvg.models.factory import save
from epmvg.models.grounder import Grounder
from epmvg.report import write_report

NAME, OTHER = "hf:somebody/owl", "hf:another/dino"
NOUNS = {"red": "apple", "green": "frog", "blue": "whale", "yellow": "lemon"}


@pytest.fixture
def data(squares: Path) -> str:
    """Squares with names, two in each image, so that the others are negative phrases."""
    rows = [json.loads(line) for line in squares.read_text().splitlines()]
    kept = [row | {"phrase": f"the {NOUNS[row['phrase'].split()[1]]}"} for i, row in enumerate(rows) if i % 4 < 2]
    squares.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return str(squares)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Two grounders on a hub, and an empty folder to work in."""
    folders = {NAME: save_detector("owlv2", tmp_path / "a"), OTHER: save_detector("mm-grounding-dino", tmp_path / "b")}
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(folders[f"hf:{name}"]))
    return folders


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def command(*arguments: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*arguments])
    assert stop.value.code == 0


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("run", [NAME, OTHER])
def test_an_evaluation_is_that_of_the_predictions(run: str, hub: dict[str, Path], data: str) -> None:
    before = files_of(hub[run])
    result = evaluate(run, data=data, split="val")
    predictor = Predictor(run)
    samples = open_samples(data, split="val", root=None)
    outputs = [predictor.predict_boxes(sample.image, [sample.phrase]) for sample in samples]
    boxes = np.concatenate([one.boxes for one in outputs])
    targets = torch.tensor([sample.box for sample in samples], dtype=torch.float64)
    iou = paired_iou(torch.from_numpy(boxes), targets).numpy()
    assert result["miou"] == pytest.approx(np.mean(iou), abs=1e-4) and result["n"] == len(samples) == 12
    assert result["acc25"] == np.mean(iou >= 0.25) and result["acc50"] == np.mean(iou >= 0.5)
    folder = Path("runs") / run.rpartition("/")[2]
    rows = {(row["image"], row["phrase"]): row for row in rows_of(folder / result["predictions"])}
    for sample, box in zip(samples, boxes, strict=True):
        assert rows[str(sample.image), sample.phrase]["box"] == pytest.approx(box, abs=0.01)
    assert result["confidence"]["negatives"] > 0 and len(result["weights"]) == 64
    assert files_of(hub[run]) == before  # what was downloaded stays as it is


def test_a_local_folder_holds_its_results(hub: dict[str, Path], data: str) -> None:
    result = evaluate(hub[NAME], data=data)
    assert (hub[NAME] / result["predictions"]).is_file() and not Path("runs").exists()
    assert result["weights"] == evaluate(NAME, data=data)["weights"]
    with pytest.raises(InputError, match="has no data of its own"):
        evaluate(hub[NAME])


def test_a_calibration_is_stored_beside_the_results_and_applied(hub: dict[str, Path], data: str) -> None:
    calibrate(OTHER, data=data, split="val", false_positive_rate=0.3)
    calibration = read_calibration(Path("runs/dino"))
    assert calibration is not None and calibration.threshold is not None
    assert Predictor(OTHER).threshold == calibration.threshold == Predictor(OTHER).resolve_min_score("auto")
    assert Predictor(hub[OTHER]).threshold is None
    assert evaluate(OTHER, data=data, split="val")["confidence"]["calibrated_on_these_samples"]
    calibrate(hub[OTHER], data=data, split="val", false_positive_rate=0.3)
    assert Predictor(hub[OTHER]).threshold == calibration.threshold
    with pytest.raises(InputError, match="not a run"):
        calibrate(OTHER, data=data, split="val", fit_head=True)
    with pytest.raises(InputError, match="for reporting"):
        calibrate(OTHER, data=data, split="test")
    save_detector("mm-grounding-dino", hub[OTHER], seed=1)
    with pytest.raises(InputError, match="belongs to other weights"):
        Predictor(OTHER)


def test_a_student_and_grounders_are_in_one_table(
    hub: dict[str, Path], data: str, tiny: Grounder, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tiny, Path("runs/student"))
    for run in ("runs/student", NAME, OTHER):
        command("evaluate", run, "--data", data, "--split", "val")
    command("report", "runs/student", NAME, "runs/dino", "--out", "report.html")
    page = Path("report.html").read_text(encoding="utf-8")
    assert all(f">{name}<" in page for name in ("student", "owl", "dino"))
    assert Path("report.html").read_bytes() == write_report(["runs/student", "runs/owl", OTHER], "b.html").read_bytes()
    with pytest.raises(InputError, match="no results of such a model in runs/nobody"):
        write_report(["hf:somebody/nobody"], "c.html")
    save(tiny, Path("runs/other"))
    with pytest.raises(InputError, match="cannot be written there"):
        hub["hf:somebody/other"] = hub[NAME]
        evaluate("hf:somebody/other", data=data)


def test_many_images_and_perturbations(hub: dict[str, Path], data: str) -> None:
    done = predict_many(NAME, data, "out.jsonl", batch_size=5)
    assert done["rows"] == 24 and done["errors"] == 0
    predictor = Predictor(NAME)
    for row in rows_of(Path("out.jsonl"))[:6]:
        image = Path(data).parent / row["image"]
        assert row["box"] == pytest.approx(predictor(image, row["phrase"])[0].box, abs=0.02)
    result = measure_robustness(NAME, data=data, split="val", limit=4)
    assert result["clean"]["n"] == 4 and (Path("runs/owl") / result["predictions"]).is_file()


def test_a_changed_calibration_is_noticed_by_interrupted_work(hub: dict[str, Path], data: str) -> None:
    from epmvg.inference import batch

    keys = [batch.digest_of(NAME, None, 1)]
    evaluate(NAME, data=data, split="val")
    assert batch.digest_of(NAME, None, 1) == keys[0]
    calibrate(NAME, data=data, split="val", false_positive_rate=0.3)
    assert batch.digest_of(NAME, None, 1) != keys[0]


def test_the_command_predicts(hub: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    Image.effect_noise((90, 70), 80).convert("RGB").save("a.png")
    command("predict", OTHER, "a.png", "a dog", "--top-k", "2", "--draw", "drawn.png", "--json")
    (found,) = json.loads(capsys.readouterr().out)["results"]
    assert found["box"] == pytest.approx(Predictor(OTHER)("a.png", "a dog")[0].box, abs=0.02)
    assert Path("drawn.png").is_file() and 1 <= len(found["candidates"]) <= 2
