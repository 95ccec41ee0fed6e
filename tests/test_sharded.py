"""Weights dealt out among processes (FSDP) learn what whole ones learn, and are saved and read as whole ones.

Accelerate takes FSDP for graphics cards only: these tests put it into that state by hand, over gloo.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import accelerate
import pytest
import safetensors.torch
import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from processes import together
from test_processes import SAME, rows

import epmvg
from epmvg.config import Recipe
from epmvg.distill.teacher import ClipTeacher
from epmvg.training import loop
from epmvg.training.run import Run
from epmvg.types import InputError

FROZEN = ["model.linguistic={frozen: [all]}", "model.visual={frozen: [conv1, bn1, layer1, layer2]}"]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EPMVG_CACHE", str(tmp_path / "cache"))


def by_fsdp(version: int, work: Callable[[], object]) -> None:
    """Do some work as if `accelerate config` had chosen FSDP; only for a process that ends after it."""
    plain = accelerate.Accelerator

    def sharding(**settings: object) -> accelerate.Accelerator:
        accelerator = plain(**settings)
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=version)
        for state in (accelerator.state, accelerate.PartialState()):
            state.distributed_type = DistributedType.FSDP
        return accelerator

    accelerate.Accelerator = sharding
    work()


def test_shards_learn_as_one_process_does(squares: Path, tmp_path: Path) -> None:
    """Losses within 1e-4 of themselves, accumulated and with parts that are frozen; the saved weights are whole."""
    settings = [f"data.name={squares}", *SAME, *FROZEN, "data.phrases=4", "train.evaluate_every=3", "train.clip=0.5"]
    one, two = (
        partial(epmvg.train, Recipe.load("scenes", *settings, *batch), tmp_path / name)
        for name, batch in (("one", ["data.images=6"]), ("two", ["data.images=1", "train.accumulate=3"]))
    )
    assert together(1, one) == [0]
    assert together(2, partial(by_fsdp, 2, two)) == [0, 0]
    curves = [[row["loss"] for row in rows(tmp_path / name, "step")] for name in ("one", "two")]
    assert len(curves[0]) == 3
    for step, loss in zip(*curves, strict=True):
        assert loss == pytest.approx(step, rel=1e-4, abs=2e-5)
    assert rows(tmp_path / "two", "evaluate")[-1]["miou"] == pytest.approx(
        rows(tmp_path / "one", "evaluate")[-1]["miou"], abs=1e-3
    )
    saved = torch.load(tmp_path / "two" / "state" / "last.pt", weights_only=True)["student"]
    for name, tensor in epmvg.load(tmp_path / "two").state_dict().items():
        assert torch.equal(tensor, saved[name].reshape(tensor.shape)), name


def test_shards_resume_to_the_same_weights(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With an unfrozen teacher and a regressor beside them, to the last bit; and both learn as in one process."""
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    teacher, published = tmp_path / "teacher.json", tmp_path / "teacher.safetensors"
    teacher.write_text(json.dumps(config))
    safetensors.torch.save_file(ClipTeacher(teacher, "random").clip.state_dict(), published)
    settings = [f"data.name={squares}", *(setting for setting in SAME if setting != "distill=null"), "data.phrases=4"]
    settings += ["model.visual={frozen: [all]}", "train.epochs=1"]
    settings += [f"distill.teacher={teacher}", f"distill.pretrained={published}", "distill.frozen=false"]
    settings += ["distill.fit=linear", "train.lr_teacher=1e-3"]
    recipe = Recipe.load("scenes", *settings, "data.images=1")
    assert together(1, partial(epmvg.train, Recipe.load("scenes", *settings, "data.images=2"), tmp_path / "one")) == [0]
    assert together(2, partial(by_fsdp, 2, partial(epmvg.train, recipe, tmp_path / "whole"))) == [0, 0]
    curves = [[row["loss"] for row in rows(tmp_path / name, "step")] for name in ("one", "whole")]
    for step, loss in zip(*curves, strict=True):
        assert loss == pytest.approx(step, rel=1e-4, abs=2e-5)
    real = loop._step

    def stopped(run: Run, batch: epmvg.Batch, share: float) -> object:
        if run.position.step == 2:
            raise InputError("stopped")
        return real(run, batch, share)

    monkeypatch.setattr(loop, "_step", stopped)
    assert together(2, partial(by_fsdp, 2, partial(epmvg.train, recipe, tmp_path / "cut"))) == [2, 2]
    monkeypatch.setattr(loop, "_step", real)
    resumed = partial(epmvg.train, recipe, tmp_path / "cut", resume=True)
    assert together(2, partial(by_fsdp, 2, resumed)) == [0, 0]
    assert "Traceback" not in capfd.readouterr().err
    whole, cut = (torch.load(tmp_path / name / "state" / "last.pt", weights_only=True) for name in ("whole", "cut"))
    for state in (whole, cut):
        state["beside"]["student"] = state["student"]
    assert whole["beside"].keys() == {"student", "teacher", "regressor"}
    for part, tensors in whole["beside"].items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, cut["beside"][part][name]), (part, name)
    for number, moments in whole["optimizer"]["state"].items():
        for name, tensor in moments.items():
            assert torch.equal(tensor, cut["optimizer"]["state"][number][name]), (number, name)


@pytest.mark.parametrize("way", ["FSDP version 1", "DeepSpeed"])
def test_other_ways_are_refused_before_anything_is_written(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], way: str
) -> None:
    if way == "DeepSpeed":
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    train = partial(epmvg.train, Recipe.load("scenes", f"data.name={squares}", *SAME), tmp_path / "run")
    assert together(1, partial(by_fsdp, 1, train)) == [2]
    said = capfd.readouterr().err
    assert way in said and "accelerate config" in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()
