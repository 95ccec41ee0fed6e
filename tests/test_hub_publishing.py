"""A published folder predictions as the run does, names no place on a disk, and states only what was measured."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

import epmvg
from epmvg.core.calibration import Calibration
from epmvg.core.types import InputError
from epmvg.hub import model_card
from epmvg.models.factory import create_model, load, save


@pytest.fixture
def run(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scored and calibrated run in runs/mine, and street.jpg, in the current folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "mine"
    model = create_model("tiny-resnet", dense_head=True, similarity=True, iou_head=True)
    model.calibration = Calibration("platt", 1.5, 1.5, -0.5, 0.25, 0.1, {"data": "annotations", "split": "val"})
    model.calibration.fitted.update(coverage=0.5)  # type: ignore[union-attr]
    save(model, folder)
    recipe = epmvg.Recipe.load("scenes", f"data.name={squares}", f"data.root={squares.parent}", "model=tiny-resnet")
    (folder / "config.yaml").write_text(recipe.dump())
    (squares.parent / "0.png").rename(squares.parent / "street.jpg")
    lines = squares.read_text().replace('"0.png"', '"street.jpg"')
    squares.write_text(lines)
    return folder


def test_a_published_folder_predicts_the_same_and_contains_no_paths(run: Path, tmp_path: Path) -> None:
    epmvg.evaluate(run)
    folder = epmvg.save_pretrained(run, tmp_path / "hub" / "mine")
    here, there = (epmvg.Predictor(where)("street.jpg", "the red square", min_score="auto") for where in (run, folder))
    assert here == there
    card = (folder / "README.md").read_text()
    metrics = json.loads((run / "evaluation-annotations-val.json").read_text())
    low, high = metrics["intervals"]["acc50"]
    assert f"| {100 * metrics['acc50']:.1f} % ({100 * low:.1f} % to {100 * high:.1f} %) |" in card
    assert "0 of the 6 images of annotations val are among the 6 training images" in card
    assert "Teacher: none" in card and "No licence was stated" in card
    assert yaml.safe_load(card.split("---")[1])["license"] == "unknown"
    for file in folder.rglob("*"):
        assert file.suffix not in (".bin", ".pt", ".pkl")
        assert not file.is_file() or str(tmp_path).encode() not in file.read_bytes(), file
    with pytest.raises(InputError, match="not empty"):
        epmvg.save_pretrained(run, folder)


def test_a_card_has_no_metrics_of_other_weights(run: Path, tmp_path: Path) -> None:
    epmvg.evaluate(run)
    model = load(run)
    torch.nn.init.normal_(model.reg_token.weight)
    save(model, run)  # trained on, and not evaluated again
    assert "Not measured: `epmvg evaluate` was not run on these weights" in model_card(run)
    epmvg.evaluate(run)
    ece = json.loads((run / "evaluation-annotations-val.json").read_text())["confidence"]["ece"]
    assert f"| {ece:.3f} |" in model_card(run)
    model.calibration = Calibration("platt", 3.0, 3.0, 0.0)
    save(model, run)  # calibrated again: accuracy stays, the error of its scores does not
    card = model_card(run)
    assert "Acc@0.5" in card and f"| {ece:.3f} |" not in card
    model.calibration = Calibration("none", 1.0, 1.0, 0.0, 0.5, 0.1)
    save(model, run)
    assert "Scores are not calibrated" in model_card(run)


def test_leaks_are_counted_by_content(run: Path, squares: Path) -> None:
    epmvg.evaluate(run)
    rows = [json.loads(line) for line in squares.read_text().splitlines()]
    images = {split: sorted({row["image"] for row in rows if row["split"] == split}) for split in ("train", "val")}
    shutil.copy(squares.parent / images["train"][0], squares.parent / images["val"][0])
    assert "1 of the 6 images of annotations val are among the 6 training images" in model_card(run)


def test_publishing_deletes_files_of_an_earlier_model(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A calibration on the hub that the new folder does not have is deleted with the same commit."""
    import huggingface_hub

    queries: dict[str, Any] = {}
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, name, **_: SimpleNamespace(repo_id=name))
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", lambda self, **given: queries.update(given))
    epmvg.push_to_hub(run, "somebody/mini")
    assert {"confidence.json", "model.safetensors", "config.yaml"} <= set(queries["delete_patterns"])


def test_other_models_on_the_hub_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(tmp_path))
    with pytest.raises(InputError, match=r"somebody/detector on the Hugging Face hub is no model of epmvg"):
        epmvg.load("somebody/detector")

    def unknown(name: str, **_: Any) -> str:
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unknown)
    with pytest.raises(InputError, match=r"cannot be downloaded from the Hugging Face hub \(Repository"):
        epmvg.load("somebody/nothing")


def test_the_domain_is_published(run: Path, tmp_path: Path) -> None:
    """From the card of the bundled model, a recipe of drawn scenes, a published folder; nobody's word is no word."""
    bundled = epmvg.Predictor("default")
    assert bundled.domain == "drawn scenes, not photographs" and bundled.domain in repr(bundled)
    assert epmvg.Predictor(run).domain is None
    recipe = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub(r"(?m)^  name: .*jsonl$", "  name: scenes", recipe))
    published = epmvg.save_pretrained(run, tmp_path / "hub" / "scenes")
    assert epmvg.Predictor(run).domain == epmvg.Predictor(published).domain == bundled.domain


def test_a_card_states_what_is_unknown(tmp_path: Path) -> None:
    """A model saved by hand: no recipe, no score, no calibration."""
    save(create_model("tiny-resnet"), tmp_path / "run")
    card = (epmvg.save_pretrained(tmp_path / "run", tmp_path / "hub", licence="mit") / "README.md").read_text()
    for words in (
        "how this model was trained is not known",
        "`epmvg evaluate` was not run",
        "Not checked",
        "under mit",
    ):
        assert words in card
    assert "Scores are not calibrated" in card
    assert load(tmp_path / "hub").calibration is None


def test_the_hub_out_of_reach_is_one_sentence(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite is offline; a slip in a local path is never queries of the hub."""
    import huggingface_hub

    with pytest.raises(InputError, match=r"^somebody/mini is no folder here and cannot be downloaded") as failed:
        epmvg.load("somebody/mini")
    assert "\n" not in str(failed.value)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(InputError, match=r"There is no run runs/nine"):
        epmvg.load("runs/nine")
    with pytest.raises(InputError, match="could not be published"):
        epmvg.push_to_hub(run, "somebody/mini")
