"""Training: killed and resumed runs, determinism, distillation, and rejected folders and settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from clips import write_clip
from runs import KilledError, killed_at, recipe, rows, weights

import epmvg
from epmvg.config.settings import Recipe
from epmvg.core.types import InputError
from epmvg.models.factory import create_model, load
from epmvg.training import loop
from epmvg.training.optimizer import StepCount, lr_factor, parameter_groups


@pytest.fixture(autouse=True)
def scenes_recipe_is_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EPMVG_CACHE", str(tmp_path / "cache"))


def test_killed_run_resumes_to_the_same_weights(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between two checkpoints, resumed, and compared bit by bit with a run that was never stopped."""
    chosen = recipe(
        squares, "data.augment={horizontal_flip: 0.5, translate: 1.0}", "train.log_interval=3", "train.save_interval=2"
    )
    whole = epmvg.train(chosen, tmp_path / "whole")
    monkeypatch.setattr(loop, "check_finite", killed_at(6))
    with pytest.raises(KilledError):
        epmvg.train(chosen, tmp_path / "cut")
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as out:
        out.write('{"step": 7, "torn')
    monkeypatch.undo()
    monkeypatch.setenv("EPMVG_CACHE", str(tmp_path / "cache"))
    cut = epmvg.train(chosen, tmp_path / "cut", resume=True)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(cut)[name]), name
    timeless = [{k: v for k, v in row.items() if "second" not in k and "_per_s" not in k} for row in rows(whole)]
    again = [{k: v for k, v in row.items() if "second" not in k and "_per_s" not in k} for row in rows(cut)]
    assert again == timeless


def test_equal_weights_of_samples_change_nothing_and_others_do(squares: Path, tmp_path: Path) -> None:
    """A step over several batches divides by their summed weights."""
    samples = [json.loads(line) for line in squares.read_text().splitlines()]
    runs = {}
    for name, weights_of in {"none": {}, "equal": {0: 4.0, 1: 4.0}, "unequal": {0: 0.01, 1: 1.0}}.items():
        lines = [row | {"weight": weights_of[i % 2]} if weights_of else row for i, row in enumerate(samples)]
        squares.write_text("".join(json.dumps(line) + "\n" for line in lines))
        settings = ["train.gradient_accumulation_steps=2", "train.epochs=1"]
        runs[name] = weights(epmvg.train(recipe(squares, *settings), tmp_path / name))
    changed = {
        name: any((runs["none"][key] - run[key]).abs().max() > 1e-3 for key in run) for name, run in runs.items()
    }
    assert changed == {"none": False, "equal": False, "unequal": True}


@pytest.mark.parametrize("frozen", [True, False])
def test_distillation_losses_fall_and_weights_exclude_the_teacher(squares: Path, tmp_path: Path, frozen: bool) -> None:
    settings = [f"distill.teacher={write_clip(tmp_path / 'teacher')}"]
    settings += [f"distill.frozen={frozen}", "train.epochs=12", "train.eval_interval=12"]
    folder = epmvg.train(recipe(squares, *settings), tmp_path / "run")
    steps = [row["loss"] for row in rows(folder) if row["event"] == "step"]
    distilled = [step["image"] + step["text"] for step in steps]
    assert sum(distilled[-4:]) < 0.7 * sum(distilled[:4])
    names = safetensors.torch.load_file(folder / "model.safetensors").keys()
    assert names == create_model("tiny-resnet", dense_head=True, similarity=True).state_dict().keys()
    assert load(folder).image_size == 64


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cached_features_train_the_same_model(squares: Path, tmp_path: Path, precision: str) -> None:
    """Up to the half precision of what is stored."""
    frozen = ["model.visual_encoder={frozen: [all]}", "data.augment=null", f"train.precision={precision}"]
    live = epmvg.train(recipe(squares, *frozen), tmp_path / "live")
    stored = epmvg.train(recipe(squares, *frozen, "train.cache_features=true"), tmp_path / "stored")
    losses = [[row["loss"]["total"] for row in rows(f) if row["event"] == "step"] for f in (live, stored)]
    torch.testing.assert_close(torch.tensor(losses[0][:4]), torch.tensor(losses[1][:4]), rtol=0.02, atol=0.02)
    assert (tmp_path / "cache" / "features.sqlite").exists()


def test_caching_features_needs_a_frozen_backbone(squares: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.cache_features=true needs"):
        epmvg.train(recipe(squares, "train.cache_features=true"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_folder_with_a_run_is_rejected_and_unchanged(squares: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("kept")
    with pytest.raises(InputError, match=r"not empty.*--resume"):
        epmvg.train(recipe(squares), tmp_path / "run")
    assert (tmp_path / "run" / "config.yaml").read_text() == "kept"


def test_resuming_needs_the_same_settings(squares: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run to resume"):
        epmvg.train(recipe(squares), tmp_path / "run", resume=True)
    epmvg.train(recipe(squares, "train.epochs=1"), tmp_path / "run")
    with pytest.raises(InputError, match="other settings"):
        epmvg.train(recipe(squares, "train.epochs=2"), tmp_path / "run", resume=True)


def test_missing_image_is_skipped_and_counted(squares: Path, tmp_path: Path) -> None:
    (squares.parent / "0.png").unlink()
    reported: list[dict[str, object]] = []
    epmvg.train(recipe(squares, "train.epochs=1"), tmp_path / "run", report=reported.append)
    skips = [row for row in reported if row["event"] == "skipped"]
    assert len(skips) == 1 and skips[0]["rows"] == 4 and "0.png" in str(skips[0]["why"])


def test_run_starts_from_weights_of_another(squares: Path, tmp_path: Path) -> None:
    """One step at a tiny learning rate does not change them; another shape is rejected."""
    first = epmvg.train(recipe(squares), out=tmp_path / "first")
    still = [
        "train.lr=1e-12",
        "train.lr_backbone=1e-12",
        "train.lr_visual_encoder=1e-12",
        "train.lr_text_encoder=1e-12",
    ]
    second = epmvg.train(
        recipe(squares, f"model.init_from={first}", "train.epochs=0.5", *still), out=tmp_path / "second"
    )
    start = load(first).state_dict()
    for name, tensor in load(second).state_dict().items():
        torch.testing.assert_close(tensor, start[name], atol=1e-6, rtol=1e-5)
    with pytest.raises(InputError, match="another shape"):
        epmvg.train(recipe(squares, f"model.init_from={first}", "model.dense_head=false"), out=tmp_path / "third")


def test_smaller_training_images_need_sine_positions(squares: Path, tmp_path: Path) -> None:
    epmvg.train(recipe(squares, "data.image_size=32", "model.position=sine", "train.epochs=1"), out=tmp_path / "run")
    assert load(tmp_path / "run").image_size == 64
    with pytest.raises(InputError, match=r"model\.position=sine"):
        epmvg.train(recipe(squares, "data.image_size=32"), out=tmp_path / "other")


def test_parameter_groups_contain_every_trainable_parameter_once() -> None:
    for name in ("tiny-resnet", "mini"):
        model = create_model(name)
        groups = parameter_groups(model, Recipe().train)
        held = [id(p) for group in groups for p in group["params"]]
        assert len(held) == len(set(held))
        assert set(held) == {id(p) for p in model.parameters() if p.requires_grad}


def test_lr_schedules() -> None:
    settings = Recipe().train.model_copy(update={"epochs": 10.0, "lr_drop": 4.0, "warmup_steps": 5})
    count = StepCount.of(10, settings)
    assert [lr_factor(step, count, settings) for step in (0, 4, 5, 39, 40, 80)] == pytest.approx(
        [0.2, 1, 1, 1, 0.1, 0.01]
    )
    cosine = settings.model_copy(update={"lr_schedule": "cosine"})
    values = [lr_factor(step, count, cosine) for step in range(5, 100)]
    assert values[0] == 1 and values == sorted(values, reverse=True) and values[-1] == pytest.approx(0.01)
