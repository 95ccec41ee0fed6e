"""Exported folders predict as the run, for any number of images and phrases, without torch, or are not written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from grounders import MODELS
from PIL import Image

from epmvg import export
from epmvg.cli import main
from epmvg.core.calibration import Calibration
from epmvg.core.geometry import Letterbox
from epmvg.core.locate import EXPORT_FILE
from epmvg.core.types import InputError
from epmvg.evaluation.calibration import calibrate
from epmvg.evaluation.evaluate import evaluate
from epmvg.evaluation.robustness import measure_robustness
from epmvg.export import graphs
from epmvg.export.parity import largest_difference
from epmvg.inference.batch import predict_many
from epmvg.inference.predictor import Predictor
from epmvg.inference.runtimes.exported import ExportedRuntime
from epmvg.inference.runtimes.protocol import GrounderRuntime
from epmvg.inference.runtimes.torch_runtime import TorchRuntime
from epmvg.models.factory import create_model, save

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from epmvg.export import int8

PHRASES = ["dog", "the woman in the tan jacket", "a red car behind the second tree from the right"]


def random_image(seed: int, size: tuple[int, int] = (90, 60)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def model_inputs(runtime: GrounderRuntime, seeds: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return images of different shapes, padded to squares: image [I, 3, S, S], image_mask [I, S, S]."""
    padded = []
    for seed in seeds:
        letterbox = Letterbox.fit(90 - 20 * seed, 60, runtime.image_size)
        padded.append(letterbox.pad(letterbox.resize(random_image(seed, (90 - 20 * seed, 60)))))
    return np.stack([image for image, _ in padded]), np.stack([image_mask for _, image_mask in padded])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    save(create_model("tiny-resnet", dense_head=True, similarity=True), folder)
    (folder / "README.md").write_text("---\nlicense: mit\ndomain: noise\n---\n# noise\n")
    return folder


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    folder = run / "export"
    export.export_run(run, folder)
    return folder


@pytest.fixture
def quick(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `export_run` copy graphs that were written before, since tracing takes seconds."""

    def copy_graphs(model: object, folder: Path) -> None:
        for graph in exported.glob("*.onnx"):
            shutil.copy(graph, folder)

    monkeypatch.setattr(graphs, "write_onnx", copy_graphs)


@pytest.fixture
def calibration_data(squares: Path) -> export.CalibrationData:
    return export.CalibrationData(str(squares), max_images=3)


def test_bulk_prediction_from_an_exported_folder(run: Path, exported: Path, squares: Path, tmp_path: Path) -> None:
    for folder in (run, exported):
        predict_many(folder, squares, tmp_path / f"{folder.name}.jsonl", batch_size=5)
    ours, theirs = (
        [json.loads(line) for line in (tmp_path / f"{folder.name}.jsonl").read_text().splitlines()]
        for folder in (run, exported)
    )
    assert len(ours) == 48
    for one, other in zip(ours, theirs, strict=True):
        assert other["box"] == pytest.approx(one["box"], abs=0.05) and other["phrase"] == one["phrase"]


def test_an_export_is_evaluated_as_the_run(run: Path, squares: Path, exported: Path, tmp_path: Path) -> None:
    """Evaluation and robustness of graphs and of the model agree."""
    run, exported = (Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in (run, exported))
    results = [evaluate(folder, data=str(squares), split="val") for folder in (run, exported)]
    assert results[0]["weights"] != results[1]["weights"]
    rows = [
        [json.loads(line) for line in (folder / result["predictions"]).read_text().splitlines()]
        for folder, result in zip((run, exported), results, strict=True)
    ]
    assert [row["phrase"] for row in rows[0]] == [row["phrase"] for row in rows[1]] and results[0]["n"] == len(rows[0])
    for one, other in zip(*rows, strict=True):
        assert other["box"] == pytest.approx(one["box"], abs=0.05)
        assert other["iou"] == pytest.approx(one["iou"], abs=1e-3)
        assert other["score"] == pytest.approx(one["score"], abs=1e-4) and other["target"] == one["target"]
    for key in ("miou", "truncated", "unknown", "unread_images"):
        assert results[0][key] == pytest.approx(results[1][key], abs=1e-3)
    assert results[1]["confidence"]["negatives"] == results[0]["confidence"]["negatives"]
    robust = [measure_robustness(folder, data=str(squares), split="val", limit=8) for folder in (run, exported)]
    assert robust[0]["clean"] == robust[1]["clean"]
    with pytest.raises(InputError, match="not a run"):
        calibrate(exported, data=str(squares), split="val", fit_head=True)
    with pytest.raises(InputError, match="has no data of its own"):
        evaluate(exported)


def test_an_export_is_calibrated(exported: Path, squares: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(exported, folder)
    done = calibrate(folder, data=str(squares), split="val")
    raw, calibrated = (Predictor(each)(random_image(0), PHRASES) for each in (exported, folder))
    mapped = Calibration(**done)(np.array([one.score for one in raw]))
    assert [one.score for one in calibrated] == pytest.approx(mapped, abs=1e-6)
    assert [one.box for one in calibrated] == [one.box for one in raw]


def test_an_exported_folder_predicts_as_the_run(run: Path, exported: Path) -> None:
    ground, ours = Predictor(exported), Predictor(run)
    assert ground.domain == ours.domain == "noise"
    for seed, size in enumerate([(90, 60), (60, 90), (200, 30), (64, 64)]):
        found, expected = (each(random_image(seed, size), PHRASES, top_k=3) for each in (ground, ours))
        for one, other in zip(found, expected, strict=True):
            assert one.box == pytest.approx(other.box, abs=0.05)
            assert one.score == pytest.approx(other.score, abs=1e-4)
            assert len(one.candidates) == len(other.candidates) <= 3
            for candidate, same in zip(one.candidates, other.candidates, strict=True):
                assert candidate.box == pytest.approx(same.box, abs=0.05)
                assert candidate.score == pytest.approx(same.score, abs=1e-4)
        heatmaps, same_heatmaps = (each.maps("heatmap", random_image(seed, size), PHRASES) for each in (ground, ours))
        np.testing.assert_allclose(heatmaps, same_heatmaps, atol=1e-3)
    with pytest.raises(InputError, match="return no attention"):
        ground.maps("attention", random_image(0), PHRASES)
    assert sorted(file.name for file in exported.iterdir()) == [
        EXPORT_FILE,
        "image.onnx",
        "phrases.onnx",
        "tokenizer.json",
    ]
    assert json.loads((exported / EXPORT_FILE).read_text())["difference_px"] <= export.MAX_BOX_DIFFERENCE


def test_an_exported_folder_runs_without_torch(run: Path, exported: Path, tmp_path: Path) -> None:
    random_image(0).save(tmp_path / "photo.png")
    script = """
import json, sys
import epmvg
found = epmvg.Predictor(sys.argv[1])(sys.argv[2], json.loads(sys.argv[3]))
heavy = {"torch", "torchvision", "transformers", "timm"} & sys.modules.keys()
print(json.dumps({"boxes": [one.box for one in found], "heavy": sorted(heavy)}))
"""
    arguments = [str(exported), str(tmp_path / "photo.png"), json.dumps(PHRASES)]
    done = subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True, text=True)
    output = json.loads(done.stdout)
    assert output["heavy"] == []
    expected = Predictor(run)(tmp_path / "photo.png", PHRASES)
    assert np.array(output["boxes"]) == pytest.approx(np.array([one.box for one in expected]), abs=0.05)


def test_images_and_phrases_are_dynamic(exported: Path) -> None:
    runtime = ExportedRuntime(exported)
    image, image_mask = model_inputs(runtime, [0, 1, 2])
    phrases = [*PHRASES, "sky", "it"]
    image_index = np.array([2, 0, 0, 1, 2])
    together, _ = runtime.query_features(runtime.encode_pixels(image, image_mask), image_mask, phrases, image_index)
    for number, whose in enumerate(image_index):
        one = slice(whose, whose + 1)
        features = runtime.encode_pixels(image[one], image_mask[one])
        alone, _ = runtime.query_features(features, image_mask[one], [phrases[number]], np.zeros(1, np.int64))
        np.testing.assert_allclose(together.boxes[number], alone.boxes[0], atol=1e-5)


class Changed:
    """A runtime whose boxes or scores are wrong."""

    def __init__(self, runtime: GrounderRuntime, box: float = 1.0, score: float = 1.0) -> None:
        self.runtime, self.box, self.score = runtime, box, score

    def query_features(self, *arguments: Any) -> Any:
        output, tokens = self.runtime.query_features(*arguments)
        return replace(output, boxes=output.boxes * self.box, scores=output.scores * self.score), tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runtime, name)


def test_wrong_confidences_and_nan_are_differences(exported: Path) -> None:
    ours: Any = ExportedRuntime(exported)
    changed: Any = Changed
    assert largest_difference(ours, ours) == (0.0, 0.0)
    edges, scores = largest_difference(ours, changed(ours, score=0.5))
    assert edges == 0.0 and scores > export.MAX_CONFIDENCE_DIFFERENCE
    assert np.isnan(largest_difference(ours, changed(ours, box=np.nan))[0])
    assert np.isnan(largest_difference(changed(ours, score=np.nan), ours)[1])


@pytest.mark.parametrize("wrong", [{"box": np.nan}, {"score": 0.5}, {"score": np.nan}])
@pytest.mark.usefixtures("quick")
def test_an_export_with_other_predictions_is_rejected(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, float]
) -> None:
    monkeypatch.setattr(export, "ExportedRuntime", lambda folder: Changed(ExportedRuntime(folder), **wrong))
    with pytest.raises(InputError, match="differs from the run"):
        export.export_run(run, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("quick")
def test_openvino_predicts_the_same(
    run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    folder = tmp_path / "openvino"
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(run), "--out", str(folder), "--format", "openvino"])
    printed = capsys.readouterr()
    assert stopped.value.code == 0, printed.err
    assert f"The export is in {folder}" in printed.out
    assert "largest difference from the run: box edge" in printed.err
    names = ["image.bin", "image.xml", "phrases.bin", "phrases.xml"]
    assert sorted(file.name for file in folder.iterdir()) == [EXPORT_FILE, *names, "tokenizer.json"]
    edges, scores = largest_difference(ExportedRuntime(folder), ExportedRuntime(exported))
    assert edges < 0.01 and scores < 1e-4


@pytest.mark.usefixtures("quick")
def test_int8_is_smaller_close_and_evaluated(
    run: Path, exported: Path, calibration_data: export.CalibrationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "MAX_ACCURACY_DROP", 1.0)
    lines: list[str] = []
    settings = export.export_run(run, tmp_path / "int8", calibration_data=calibration_data, report=lines.append)
    assert [file.name for file in tmp_path.iterdir() if file.is_dir()] == ["int8"]
    assert settings["precision"] == "int8"
    assert settings["calibrated_on"] == 3
    assert settings["scores"]["n"] == 9 * 4  # the images that were not calibrated on
    assert any("Acc@0.5 on 36 phrases" in line for line in lines)
    assert 0 < settings["int8_difference_px"] < 6.4  # a tenth of the input size, for random weights
    assert (tmp_path / "int8" / "image.onnx").stat().st_size < 0.4 * (exported / "image.onnx").stat().st_size
    assert Predictor(tmp_path / "int8")(random_image(0), "dog")[0].box[2] <= 90


@pytest.mark.usefixtures("quick")
def test_int8_that_loses_accuracy_is_rejected(
    run: Path, calibration_data: export.CalibrationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "MAX_ACCURACY_DROP", -1.0)
    with pytest.raises(InputError, match=r"int8 loses 0\.0000 of Acc@0\.5.*Calibrate on more images"):
        export.export_run(run, tmp_path / "out" / "int8", calibration_data=calibration_data)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_graphs_of_other_weights_are_rejected(exported: Path, tmp_path: Path) -> None:
    """An earlier export stays as it was."""
    torch.manual_seed(1)
    other = tmp_path / "other"
    save(create_model("tiny-resnet", dense_head=True, similarity=True), other)
    shutil.copytree(exported, tmp_path / "out" / "mine")
    with pytest.raises(InputError, match=r"differs from the run by \d+\.\d+ px and .* more than 0\.05 px"):
        export.export_run(other, tmp_path / "out" / "mine")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]
    assert (tmp_path / "out" / "mine" / "image.onnx").read_bytes() == (exported / "image.onnx").read_bytes()


@pytest.mark.usefixtures("quick")
def test_only_an_export_is_replaced(
    run: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a folder that holds no export, nor one that holds other files besides, whatever they are called."""
    (tmp_path / "letters").mkdir()
    shutil.copytree(exported, tmp_path / "mine")
    (tmp_path / "mine" / "image.jpg").write_text("kept")
    monkeypatch.chdir(shutil.copytree(exported, tmp_path / "current"))
    for arguments, sentence in {
        ("--out", str(tmp_path / "letters")): "letters exists and is not an exported folder",
        ("--out", str(tmp_path / "mine")): "mine holds image.jpg, which is not part of an export",
        ("--out", "."): "is the current folder",
        ("--out", str(tmp_path / "new"), "--int8", "nothing"): "There is no data set 'nothing'",
    }.items():
        with pytest.raises(SystemExit) as stopped:
            main(["export", str(run), *arguments])
        assert stopped.value.code == 2
        assert sentence in capsys.readouterr().err
    assert list((tmp_path / "letters").iterdir()) == []
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "mine" / "image.jpg").read_text() == "kept"
    (tmp_path / "mine" / "image.jpg").unlink()
    for suffix in (".xml", ".bin"):
        (tmp_path / "mine" / f"image{suffix}").touch()  # of an export for OpenVINO
    export.export_run(run, tmp_path / "mine")
    assert {file.name for file in (tmp_path / "mine").iterdir()} == {file.name for file in exported.iterdir()}


@pytest.mark.parametrize("fault", ["settings", "format", "graph", "torn", "tokenizer", "bf16", "device"])
def test_an_unusable_folder_is_rejected(exported: Path, tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(exported, folder)
    options: dict[str, Any] = {}
    if fault == "settings":
        (folder / EXPORT_FILE).write_text("{")
    elif fault == "format":
        (folder / EXPORT_FILE).write_text('{"format": "stone", "image_size": 64, "max_length": 20}')
    elif fault == "graph":
        (folder / "phrases.onnx").unlink()
    elif fault == "torn":
        (folder / "image.onnx").write_bytes((exported / "image.onnx").read_bytes()[:1000])
    elif fault == "tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    else:
        options = {"precision": "bf16"} if fault == "bf16" else {"device": "cuda"}
    sentence = {"bf16": "does not compute in bf16", "device": "runs on the CPU"}.get(fault, "Export the run again")
    with pytest.raises(InputError, match=sentence):
        Predictor(folder, **options)


@pytest.mark.parametrize("name", list(MODELS))
def test_keeping_padded_tokens_changes_no_prediction(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    preset, overrides = MODELS[name]
    runtime = TorchRuntime(create_model(preset, **overrides))
    image, image_mask = model_inputs(runtime, [0, 1])
    image_index = np.array([0, 1, 1])
    outputs = []
    for exporting in (False, True):
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda exporting=exporting: exporting)
        features = runtime.encode_pixels(image, image_mask)
        outputs.append(runtime.query_features(features, image_mask, PHRASES, image_index)[0])
    np.testing.assert_allclose(outputs[0].boxes, outputs[1].boxes, atol=1e-5)
    np.testing.assert_allclose(outputs[0].scores, outputs[1].scores, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODELS))
def test_every_kind_of_model_exports(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    preset, overrides = MODELS[name]
    save(create_model(preset, **overrides), tmp_path / "run")
    settings = export.export_run(tmp_path / "run", tmp_path / "out", format="openvino")
    assert settings["difference_px"] < export.MAX_BOX_DIFFERENCE
