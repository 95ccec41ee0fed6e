"""Training: a run can be killed and resumed, learns with and without a teacher, refuses what would lose something."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

import epmvg
from epmvg.config.settings import Recipe
from epmvg.core.types import InputError
from epmvg.models.factory import create_model, load
from epmvg.training import loop
from epmvg.training.optimizer import StepCount, lr_factor, parameter_groups
from epmvg.training.run import Run

TINY = [
    "model=tiny-resnet",
    "model.pretrained=false",
    "model.dense_head=true",
    "model.similarity=true",
    "data.batch_size=6",
    "data.phrases_per_image=2",
    "train.epochs=3",
    "train.lr=1e-3",
    "train.lr_backbone=1e-3",
    "train.save_interval=2",
    "train.log_interval=1",
    "train.eval_interval=1",
    "train.warmup_steps=0",
]


def recipe(data: Path | str, *settings: str) -> Recipe:
    return Recipe.load("scenes", f"data.name={data}", "train.cache_features=false", "distill=null", *TINY, *settings)


@pytest.fixture(autouse=True)
def scenes_recipe_is_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EPMVG_CACHE", str(tmp_path / "cache"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state = torch.load(folder / "state" / "last.pt", weights_only=True)["student"]
    return {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}


def rows(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class KilledError(Exception):
    pass


def test_a_killed_run_resumes_to_the_same_weights(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off between two saves, resumed, and compared bit by bit with a run that was never stopped."""
    chosen = recipe(
        squares, "data.augment={horizontal_flip: 0.5, translate: 1.0}", "train.log_interval=3", "train.save_interval=2"
    )
    whole = epmvg.train(chosen, tmp_path / "whole")
    real, steps = loop._step, []

    def dies_at_seven(run: Run, batch: epmvg.Batch, share: float) -> object:
        steps.append(1)
        if len(steps) == 7:
            raise KilledError
        return real(run, batch, share)

    monkeypatch.setattr(loop, "_step", dies_at_seven)
    with pytest.raises(KilledError):
        epmvg.train(chosen, tmp_path / "truncated")
    with (tmp_path / "truncated" / "metrics.jsonl").open("a") as out:
        out.write('{"step": 7, "torn')
    monkeypatch.setattr(loop, "_step", real)
    cut = epmvg.train(chosen, tmp_path / "truncated", resume=True)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(cut)[name]), name
    timeless = [{k: v for k, v in row.items() if "second" not in k and "_per_s" not in k} for row in rows(whole)]
    again = [{k: v for k, v in row.items() if "second" not in k and "_per_s" not in k} for row in rows(cut)]
    assert again == timeless


def test_a_run_twice_is_the_same_run(squares: Path, tmp_path: Path) -> None:
    first, second = (epmvg.train(recipe(squares), tmp_path / name) for name in ("first", "second"))
    a, b = (safetensors.torch.load_file(folder / "model.safetensors") for folder in (first, second))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_trainings_of_one_process_may_differ_in_precision(squares: Path, tmp_path: Path) -> None:
    first, second, third = (
        epmvg.train(recipe(squares, "train.epochs=1", f"train.precision={precision}"), tmp_path / name)
        for name, precision in (("a", "fp32"), ("b", "bf16"), ("c", "fp32"))
    )
    ours, other, again = (weights(folder) for folder in (first, second, third))
    assert all(torch.equal(tensor, again[name]) for name, tensor in ours.items())
    assert not all(torch.equal(tensor, other[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("frozen", [True, False])
def test_a_teacher_s_terms_fall_and_it_stays_out_of_the_checkpoint(squares: Path, tmp_path: Path, frozen: bool) -> None:
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    (tmp_path / "teacher.json").write_text(json.dumps(config))
    settings = [f"distill.teacher={tmp_path / 'teacher.json'}", "distill.pretrained=random"]
    settings += [f"distill.frozen={frozen}", "train.epochs=12"]
    folder = epmvg.train(recipe(squares, *settings), tmp_path / "run")
    steps = [row["loss"] for row in rows(folder) if row["event"] == "step"]
    distilled = [step["image"] + step["text"] for step in steps]  # type: ignore[index]
    assert sum(distilled[-4:]) < 0.7 * sum(distilled[:4])
    names = safetensors.torch.load_file(folder / "model.safetensors").keys()
    assert names == create_model("tiny-resnet", dense_head=True, similarity=True).state_dict().keys()
    assert load(folder).image_size == 64


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stored_maps_train_the_same_student(squares: Path, tmp_path: Path, precision: str) -> None:
    """Up to the half precision of what is stored."""
    frozen = ["model.visual_encoder={frozen: [all]}", "data.augment=null", f"train.precision={precision}"]
    live = epmvg.train(recipe(squares, *frozen), tmp_path / "live")
    stored = epmvg.train(recipe(squares, *frozen, "train.cache_features=true"), tmp_path / "stored")
    losses = [[row["loss"]["total"] for row in rows(f) if row["event"] == "step"] for f in (live, stored)]  # type: ignore[index]
    torch.testing.assert_close(torch.tensor(losses[0][:4]), torch.tensor(losses[1][:4]), rtol=0.02, atol=0.02)
    assert list((tmp_path / "cache" / "maps").glob("maps-*.npy"))


def test_storing_needs_a_frozen_backbone(squares: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.store=true needs"):
        epmvg.train(recipe(squares, "train.cache_features=true"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_is_refused_and_left_alone(squares: Path, tmp_path: Path) -> None:
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


def test_a_missing_photo_is_a_counted_skip(squares: Path, tmp_path: Path) -> None:
    (squares.parent / "0.png").unlink()
    said: list[dict[str, object]] = []
    epmvg.train(recipe(squares, "train.epochs=1"), tmp_path / "run", report=said.append)
    skips = [row for row in said if row["event"] == "skipped"]
    assert len(skips) == 1 and skips[0]["rows"] == 4 and "0.png" in str(skips[0]["why"])


def test_a_run_starts_from_another_s_weights(squares: Path, tmp_path: Path) -> None:
    """One step at a vanishing rate leaves them where they were; another shape is refused."""
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


def test_smaller_training_views_need_positions_of_any_size(squares: Path, tmp_path: Path) -> None:
    epmvg.train(recipe(squares, "data.image_size=32", "model.position=sine", "train.epochs=1"), out=tmp_path / "run")
    assert load(tmp_path / "run").image_size == 64
    with pytest.raises(InputError, match=r"model\.position=sine"):
        epmvg.train(recipe(squares, "data.image_size=32"), out=tmp_path / "other")


def test_groups_hold_every_trainable_parameter_once() -> None:
    for name in ("tiny-resnet", "mini"):
        model = create_model(name)
        groups = parameter_groups(model, Recipe().train)
        held = [id(p) for group in groups for p in group["params"]]
        assert len(held) == len(set(held))
        assert set(held) == {id(p) for p in model.parameters() if p.requires_grad}


def test_schedules_start_peak_and_end_where_they_should() -> None:
    settings = Recipe().train.model_copy(update={"epochs": 10.0, "lr_drop": 4.0, "warmup_steps": 5})
    count = StepCount.of(10, settings)
    assert [lr_factor(step, count, settings) for step in (0, 4, 5, 39, 40, 80)] == pytest.approx(
        [0.2, 1, 1, 1, 0.1, 0.01]
    )
    cosine = settings.model_copy(update={"lr_schedule": "cosine"})
    values = [lr_factor(step, count, cosine) for step in range(5, 100)]
    assert values[0] == 1 and values == sorted(values, reverse=True) and values[-1] == pytest.approx(0.01)
