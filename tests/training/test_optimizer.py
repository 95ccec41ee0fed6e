"""Optimizer steps, batches of several processes, learning rates, and validation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from runs import checkpoint, recipe, rows, weights

import epmvg
from epmvg.config.settings import AugmentSettings, Recipe
from epmvg.core.types import InputError
from epmvg.data.loader import GroundingLoader
from epmvg.data.registry import open_samples
from epmvg.distill.losses import Losses
from epmvg.models.convert import Conversion, write
from epmvg.models.factory import create_model, init_from, load
from epmvg.models.grounder import Grounder
from epmvg.training.metrics import RunningMeans
from epmvg.training.optimizer import StepCount, lr_factor, parameter_groups
from epmvg.training.processes import join_processes

STILL = ["train.lr=1e-12", "train.lr_backbone=1e-12", "train.lr_visual_encoder=1e-12", "train.lr_text_encoder=1e-12"]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EPMVG_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("batches, accumulate, per_epoch", [(7, 4, 2), (1, 4, 1), (15, 8, 2), (15078, 8, 1885)])
def test_lr_drops_at_the_configured_epoch(batches: int, accumulate: int, per_epoch: int) -> None:
    settings = Recipe().train.model_copy(
        update={"gradient_accumulation_steps": accumulate, "epochs": 90.0, "lr_drop": 60.0}
    )
    count = StepCount.of(batches, settings)
    assert (count.per_epoch, count.total, count.eval_interval) == (per_epoch, 90 * per_epoch, per_epoch)
    factors = [lr_factor(step, count, settings) for step in range(count.total)]
    assert factors == pytest.approx([1.0] * 60 * per_epoch + [0.1] * 30 * per_epoch)
    cosine = settings.model_copy(update={"lr_schedule": "cosine"})
    floor = [step for step in range(count.total) if lr_factor(step, count, cosine) == 0.01]
    assert all(step > 0.93 * count.total for step in floor)  # where the cosine itself is below it


def test_last_batches_of_an_epoch_are_a_step(squares: Path, tmp_path: Path) -> None:
    """Six images in batches of one, four to a step: 4 + 2, every phrase once per epoch."""
    reported: list[dict[str, object]] = []
    settings = [
        "data.batch_size=4",
        "data.phrases_per_image=4",
        "train.gradient_accumulation_steps=4",
        "train.epochs=2",
    ]
    run = epmvg.train(recipe(squares, *settings), tmp_path / "run", report=reported.append)
    steps = [row for row in reported if row["event"] == "step"]
    assert [row["step"] for row in steps] == [1, 2, 3, 4] and {row["steps"] for row in steps} == {4}
    assert [row["phrases"] for row in steps] == [16, 24, 40, 48]
    assert [row["step"] for row in reported if row["event"] == "evaluate"] == [2, 4]
    moments = checkpoint(run)["optimizer"]["state"]
    assert {int(moment["step"]) for moment in moments.values()} == {4}


@pytest.mark.parametrize(
    "settings, words",
    [
        (["train.epochs=0.1"], r"train\.epochs=0\.1 is less than one optimizer step"),
        (["train.warmup_steps=6"], r"train\.warmup_steps=6 would not end within the 6 optimizer steps"),
        (
            ["train.gradient_accumulation_steps=64", "train.warmup_steps=3"],
            r"train\.warmup_steps=3 would not end within the 3 optimizer steps",
        ),
    ],
)
def test_impossible_numbers_of_steps_are_rejected(
    squares: Path, tmp_path: Path, settings: list[str], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        epmvg.train(recipe(squares, "data.batch_size=12", *settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def made(
    squares: Path, tiny: Grounder, rank: int = 0, world_size: int = 1, phrases: int = 3, batch_size: int = 16
) -> GroundingLoader:
    return GroundingLoader(
        open_samples(str(squares), split=None),
        tiny.tokenize,
        image_size=64,
        batch_size=batch_size,
        phrases_per_image=phrases,
        augment=AugmentSettings(horizontal_flip=0.5, crop=0.5, scale=0.7, color_jitter=0.8, translate=1.0),
        shuffle=True,
        seed=3,
        rank=rank,
        world_size=world_size,
    )


@pytest.mark.parametrize("world", [2, 4, 8])
def test_processes_share_each_batch_of_one_process(squares: Path, tiny: Grounder, world: int) -> None:
    """Twelve images in two groups each: batches and their augmentation do not depend on the number of processes."""
    whole = list(made(squares, tiny).batches(1))
    parts = [list(made(squares, tiny, rank, world).batches(1)) for rank in range(world)]
    assert len(whole) == 3 and {len(part) for part in parts} == {3}
    for number, batch in enumerate(whole):
        own = [part[number] for part in parts]
        assert [sample.id for part in own for sample in part.samples] == [sample.id for sample in batch.samples]
        assert torch.equal(torch.cat([part.images for part in own]), batch.images)
        assert torch.equal(torch.cat([part.boxes for part in own]), batch.boxes)
        assert {len(part.images) for part in own} == {8 // world}


def test_part_of_a_short_batch_may_be_empty(squares: Path, tiny: Grounder) -> None:
    """The last four samples of an epoch are those of four of eight processes."""
    last = [list(made(squares, tiny, rank, 8, phrases=4, batch_size=44).batches(0))[1] for rank in range(8)]
    assert sorted(len(batch.images) for batch in last) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert all(len(batch.samples) == len(batch.tokens) == len(batch.boxes) for batch in last)


def test_each_group_of_an_image_is_augmented_separately(squares: Path, tiny: Grounder) -> None:
    loader = made(squares, tiny, phrases=1)
    views: dict[Path, set[float]] = {}
    for batch in loader.batches(0):
        for image_index, sample in zip(batch.image_index.tolist(), batch.samples, strict=True):
            views.setdefault(sample.image, set()).add(batch.images[image_index].double().sum().item())
    assert len(views) == 12 and all(len(different) == 4 for different in views.values())


def test_new_parameters_have_the_lr_of_new_parts() -> None:
    settings = Recipe().train
    student = create_model("tiny-swin")
    names = [name for name, _ in student.named_parameters()]
    assert {group["lr"] for group in parameter_groups(student, settings, names)} == {settings.lr}
    new = [name for name in names if not name.startswith(("visual_encoder.backbone.", "text_encoder.bert."))]
    groups = parameter_groups(student, settings, new)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            assert rates[id(parameter)] == (settings.lr if name in new else 1e-5), name
    assert any("visual_encoder.norms" in name for name in new) and any("visual_encoder.lateral" in name for name in new)


def converted(folder: Path) -> tuple[Path, set[str], set[str]]:
    """A folder as `convert` leaves it with all but backbone and text encoder new: kept and new names."""
    torch.manual_seed(7)
    model = create_model("tiny-resnet", dense_head=True, similarity=True)
    names = set(model.state_dict())
    kept = {name for name in names if name.startswith(("visual_encoder.backbone.", "text_encoder."))}
    write(Conversion(model, "tiny-resnet", [], {}, sorted(names - kept)), folder)
    return folder, kept, names - kept


def test_new_parameters_are_drawn_from_the_seed(squares: Path, tmp_path: Path) -> None:
    start, kept, new = converted(tmp_path / "start")
    ends = []
    for number, seed in enumerate((1, 2, 1)):
        settings = [f"model.init_from={start}", f"train.seed={seed}", "train.epochs=0.5", *STILL]
        ends.append(weights(epmvg.train(recipe(squares, *settings), tmp_path / f"run{number}")))
    published = load(start).state_dict()
    for name in kept & ends[0].keys():
        torch.testing.assert_close(ends[0][name], published[name], atol=1e-6, rtol=1e-5)
    for name in new & ends[0].keys():
        assert torch.equal(ends[0][name], ends[2][name]), name
        drawn = ends[0][name].unique().numel() > 1  # biases and scales start at 0 and 1
        assert not drawn or not torch.equal(ends[0][name], ends[1][name]), name


def test_converted_folder_states_its_new_parameters(squares: Path, tmp_path: Path) -> None:
    start, kept, _ = converted(tmp_path / "start")
    student = create_model("tiny-resnet", dense_head=True, similarity=True)
    assert init_from(student, start) == kept
    run = epmvg.train(recipe(squares, f"model.init_from={start}", "train.epochs=0.5"), tmp_path / "run")
    assert init_from(student, run) == set(student.state_dict())
    longer = create_model("tiny-resnet", dense_head=True, similarity=True, max_length=30)
    assert init_from(longer, start) == kept  # its positions are new, of whatever number


def test_init_from_other_normalisation_is_rejected(tmp_path: Path) -> None:
    start, _, _ = converted(tmp_path / "start")
    with pytest.raises(InputError, match=r"made with model\.visual_encoder\.mean=\[0\.485.*Give both the same"):
        init_from(
            create_model("tiny-resnet", dense_head=True, similarity=True, visual_encoder={"mean": [0.5] * 3}), start
        )


@pytest.mark.parametrize(
    "way", [["train.precision=bf16"], ["train.cache_features=true", "model.visual_encoder={frozen: [all]}"]]
)
def test_validation_equals_evaluate(squares: Path, tmp_path: Path, way: list[str]) -> None:
    run = epmvg.train(recipe(squares, "train.epochs=1", "data.augment=null", *way), tmp_path / "run")
    (logged,) = [row for row in rows(run) if row["event"] == "evaluate"]
    metrics = epmvg.evaluate(run, device="cpu")
    assert logged["n"] == metrics["n"] and logged["acc50"] == metrics["acc50"]
    assert logged["miou"] == pytest.approx(metrics["miou"], abs=2e-6)


def test_eval_limit_draws_images_and_is_reported(squares: Path, tmp_path: Path) -> None:
    settings = ["train.epochs=1", "train.eval_limit=12"]
    evaluated = []
    for seed in (1, 2):
        run = epmvg.train(recipe(squares, *settings, f"train.seed={seed}"), tmp_path / f"run{seed}")
        (logged,) = [row for row in rows(run) if row["event"] == "evaluate"]
        assert (logged["n"], logged["sample_of"]) == (12, 24)
        assert not (run / "predictions-annotations-val.jsonl").exists()
        lines = (run / "predictions-annotations-val_sample.jsonl").read_text().splitlines()
        evaluated.append([json.loads(line)["id"] for line in lines])
    assert evaluated[0] == evaluated[1]  # runs of several seeds are compared on the same phrases
    first_rows = [sample.id for sample in open_samples(str(squares), split="val")][:12]
    assert len(evaluated[0]) == 12 and sorted(evaluated[0]) != sorted(first_rows)


def test_validation_does_not_reset_running_means(squares: Path, tmp_path: Path) -> None:
    """Three steps per epoch, a row every two: validation after each epoch changes no row."""
    losses = []
    for name, every in (("often", 1), ("once", 4)):
        settings = ["train.epochs=4", "train.log_interval=2", f"train.eval_interval={every}", "data.batch_size=8"]
        run = epmvg.train(recipe(squares, *settings), tmp_path / name)
        losses.append([row["loss"] for row in rows(run) if row["event"] == "step"])
    assert len(losses[0]) == 6 and losses[0] == losses[1]


def test_rates_include_the_seconds_before_a_resume(squares: Path, tiny: Grounder) -> None:
    batch = next(made(squares, tiny).batches(0))
    loss = Losses({"giou": torch.tensor(2.0)})
    before, after = RunningMeans(), RunningMeans()
    before.reset(100.0)
    before.update(loss, batch)
    after.load_state_dict(before.state_dict(), torch.device("cpu"))
    after.update(loss, batch)
    row = after.compute(104.0)
    assert row["images_per_s"] == 2 * len(batch.images) / 4 and row["loss"] == {"giou": 2.0, "total": 2.0}
    assert after.since == 104.0 and after.images == 0


@pytest.mark.parametrize("strategy", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_other_strategies_of_accelerate_are_rejected(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{strategy}", "true")
    with pytest.raises(InputError, match=f"ACCELERATE_USE_{strategy}=true.*Choose multi-GPU"):
        epmvg.train(recipe(squares), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv(f"ACCELERATE_USE_{strategy}", "false")
    assert join_processes("cpu").device == torch.device("cpu")


def test_missing_device_is_rejected(squares: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gpu"):
        epmvg.train(recipe(squares), tmp_path / "run", device="gpu")
    assert not (tmp_path / "run").exists()
