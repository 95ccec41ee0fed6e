"""Moving average of the weights (train.ema_decay): its formula, what is validated and saved, and resuming."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from runs import KilledError, checkpoint, killed_at, recipe, weights
from torch import nn

import epmvg
from epmvg.models.factory import load
from epmvg.training import loop
from epmvg.training.averaging import average_weights
from epmvg.training.run import Run

EMA = ["train.ema_decay=0.5", "train.epochs=2", "train.eval_interval=2", "model.dropout=0.2"]  # 8 steps


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EPMVG_CACHE", str(tmp_path / "cache"))


def averages(folder: Path) -> dict[str, torch.Tensor]:
    saved = checkpoint(folder)["average"]
    return {name.removeprefix("module."): tensor for name, tensor in saved.items() if tensor.is_floating_point()}


def test_average_follows_closely_at_first_and_slowly_later() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = average_weights(model, 0.9)
    expected = 0.0
    for step in range(100):
        with torch.no_grad():
            model.weight.fill_(float(step + 1))
        average.update_parameters(model)
        decay = min(0.9, (1 + step) / (10 + step)) if step else 0.0  # the first is a copy
        expected = decay * expected + (1 - decay) * (step + 1)
        assert next(average.module.parameters()).item() == pytest.approx(expected, rel=1e-5)


def test_average_is_validated_and_saved_and_training_does_not_depend_on_it(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated: list[dict[str, torch.Tensor]] = []
    real = Run.validate

    def validate(run: Run) -> None:
        validated.append({name: tensor.clone() for name, tensor in run.saved_model.state_dict().items()})
        real(run)

    monkeypatch.setattr(Run, "validate", validate)
    run = epmvg.train(recipe(squares, *EMA), tmp_path / "averaged")
    average, trained = averages(run), weights(run)
    assert any(not torch.equal(average[name], trained[name]) for name in trained)
    saved = safetensors.torch.load_file(run / "model.safetensors")
    assert all(torch.equal(saved[name], average[name]) for name in saved if name in average)
    assert all(torch.equal(validated[-1][name], tensor) for name, tensor in average.items() if name in trained)
    load(run)
    plain = weights(epmvg.train(recipe(squares, *EMA, "train.ema_decay=null"), tmp_path / "plain"))
    assert all(torch.equal(trained[name], tensor) for name, tensor in plain.items())


def test_killed_run_resumes_to_the_same_average(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = epmvg.train(recipe(squares, *EMA), tmp_path / "whole")
    monkeypatch.setattr(loop, "check_finite", killed_at(5))
    with pytest.raises(KilledError):
        epmvg.train(recipe(squares, *EMA), tmp_path / "cut")
    monkeypatch.undo()
    monkeypatch.setenv("EPMVG_CACHE", str(tmp_path / "cache"))
    cut = epmvg.train(recipe(squares, *EMA), tmp_path / "cut", resume=True)
    for read in (averages, weights):
        one, other = read(whole), read(cut)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
