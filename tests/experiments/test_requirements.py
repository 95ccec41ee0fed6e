"""What a training needs is known before it starts, from local files alone."""

from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from epmvg.cli import main
from epmvg.config.settings import Recipe
from epmvg.experiments import reproduce as runner
from epmvg.experiments.requirements import costs, missing_weights, pretrained_parts
from epmvg.experiments.runner import Outcome
from epmvg.models.factory import create_model, save


def states(*overrides: str) -> dict[str, str]:
    return {part.name: part.state for part in pretrained_parts(Recipe.load("refcoco", *overrides))}


def test_parts_are_there_downloaded_or_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert states() == {"student": "missing", "teacher": "downloaded at the start"}
    assert "Run `epmvg convert detr-r50-unc.pth" in missing_weights(Recipe.load("refcoco"))
    tiny = "model={name: tiny-resnet, image_size: 64, init_from: start}"
    save(create_model("tiny-resnet", image_size=64), "start")
    assert states(tiny, "distill.pretrained=random") == {"student": "there", "teacher": "there"}
    assert "start was made with" in missing_weights(Recipe.load("refcoco", "model={name: mini, init_from: start}"))
    shutil.copytree("start", "cut")
    Path("cut/model.safetensors").write_bytes(b"cut")
    assert "cannot be read" in missing_weights(Recipe.load("refcoco", tiny, "model.init_from=cut"))
    from_imagenet = {"backbone": "downloaded at the start", "text encoder": "downloaded at the start"}
    assert states("model.init_from=null", "distill=null") == from_imagenet
    assert states("model=mini", "distill=null") == {"backbone": "there", "text encoder": "there"}
    assert states("model.pretrained=false", "model.init_from=null", "distill=null") == {"student": "there"}
    assert "has no model.yaml" in missing_weights(Recipe.load("refcoco", f"model.init_from={tmp_path}"))
    assert "'RN5O'" in missing_weights(Recipe.load("refcoco", "distill=RN5O"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "Unset HF_HUB_OFFLINE" in missing_weights(Recipe.load("refcoco"))


def test_costs_are_exact_where_they_can_be() -> None:
    sizes = json.loads((resources.files("epmvg.models") / "sizes.json").read_text(encoding="utf-8"))
    measured = json.loads((resources.files("epmvg.experiments") / "activations.json").read_text(encoding="utf-8"))
    assert measured.keys() == {"transvg-r50", "transvg-r101", "transvg-swin-s", "qrnet-swin-s"}
    plain, distilled = costs(Recipe.load("refcoco", "distill=null")), costs(Recipe.load("refcoco"))
    size = sizes["transvg-r50"]
    assert (plain["parameters"], plain["trainable"]) == (size["parameters"], size["trained"])
    assert plain["weights"] == 4 * (size["parameters"] + 3 * size["trained"]) / 2**30
    assert distilled["weights"] - plain["weights"] == pytest.approx(4 * distilled["teacher"] / 2**30)
    assert plain["memory"][16] - plain["memory"][8] == pytest.approx(8 * measured["transvg-r50"]["20"])
    longer = costs(Recipe.load("refcocog-umd", "distill=null"))
    assert longer["memory"][16] - longer["memory"][8] == pytest.approx(8 * measured["transvg-r50"]["40"])
    for other in ("model.dense_head=true", "train.precision=bf16", "train.gradient_checkpointing=true"):
        assert costs(Recipe.load("refcoco", other))["memory"] == {}
    assert costs(Recipe.load("refcoco", "model.image_size=320"))["hours"] is None  # nobody counted its operations
    assert plain["steps"] == 169_650 and 70 < plain["hours"] < 80 and "data.root" in plain["missing"]


def test_a_dry_run_prints_settings_and_files_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["train", "refcoco", "data.root=none", "distill.unlabeled=phrases.jsonl", "--dry-run"])
    printed = capsys.readouterr().out
    assert ended.value.code == 1 and not list(tmp_path.iterdir())
    for words in (
        "lr_backbone: 1.0e-05",
        "339,300",  # twice those of the phrases with boxes, as many without being added
        "Missing: none is not a folder",
        "phrases.jsonl cannot be opened",
        "--as detr",
        "an assumed 10 TFLOP",
    ):
        assert words in printed


def test_all_files_are_looked_for_before_the_first_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def ran(job: Any, report: Any) -> Outcome:
        events.append("run")
        return Outcome("planned")

    monkeypatch.setattr(runner, "run_job", ran)
    monkeypatch.setattr(
        runner, "missing_data", lambda recipe, splits: "no data" if recipe.loss.giou_weight == 2 else ""
    )
    monkeypatch.setattr(runner, "missing_weights", lambda recipe: "")
    monkeypatch.setattr(runner, "fetch_weights", lambda recipe: events.append("fetch"))
    result = runner.reproduce("7", scale="paper", out=tmp_path, report=lambda row: events.append(row["text"][-7:]))
    assert events[:6] == ["fetch"] * 5 + ["no data"] and events.count("run") == 4
    assert [row["trainings"][0]["state"] for row in result["rows"]][-1] == "cannot run: no data"
