"""Distillation by a recipe: trained, resumed, checked settings, and no cost at inference."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from clips import write_clip
from processes import together
from runs import KilledError, before_each_backward, checkpoint, killed_at, same_weights

import epmvg
from epmvg.config.settings import DistillSettings, Recipe
from epmvg.core.types import InputError, Sample
from epmvg.distill.teacher import ClipTeacher
from epmvg.evaluation.samples import training_images
from epmvg.experiments.requirements import costs
from epmvg.models.grounder import Grounder
from epmvg.training import cache_teacher, loop
from epmvg.training import setup as prepare
from epmvg.training import teacher as teachers

STUDENT = [
    "model=tiny-resnet",
    "model.pretrained=false",
    "model.similarity=true",
    "distill=null",
    "data.augment={horizontal_flip: 0.5, crop: 0.5}",
    "data.batch_size=6",
    "data.phrases_per_image=2",
    "train.cache_features=false",
    "train.lr=1e-3",
    "train.save_interval=2",
    "train.log_interval=1",
    "train.warmup_steps=0",
]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EPMVG_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "vit")


def recipe(squares: Path, *settings: str) -> Recipe:
    return Recipe.load("scenes", f"data.name={squares}", *STUDENT, *settings)


def losses(folder: Path) -> list[dict[str, float]]:
    rows: list[dict[str, Any]] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["event"] == "step"]


@pytest.mark.parametrize(
    "settings",
    [
        ["distill.loss=cosine", "distill.dense_weight=1"],
        ["distill.loss=l1"],
    ],
    ids=" ".join,
)
def test_distillation_losses_fall(squares: Path, vit: Path, tmp_path: Path, settings: list[str]) -> None:
    torch.manual_seed(0)
    rates = ["train.lr_backbone=1e-3", "train.lr_visual_encoder=1e-3", "train.epochs=8", "train.eval_interval=8"]
    chosen = recipe(squares, f"distill.teacher={vit}", *settings, *rates)
    steps = losses(epmvg.train(chosen, tmp_path / "run"))
    for name in {"image", "text", "dense"} & steps[0].keys():
        first, last = (sum(step[name] for step in part) for part in (steps[:8], steps[-8:]))
        # Over three random teachers the dense loss fell to 0.66, 0.78 and 0.97 of itself, the others to at most 0.42.
        assert last < (1.0 if name == "dense" else 0.9) * first, name


def test_two_processes_train_an_unfrozen_teacher_as_one_does(squares: Path, vit: Path, tmp_path: Path) -> None:
    """Matrices of student and teacher within 1e-4 of one process's.

    Some biases have no gradient but rounding, which AdamW makes as large as any.
    """
    weights = vit / "open_clip_model.safetensors"
    settings = [f"distill.teacher={vit}", "distill.frozen=false", "model.dropout=0"]
    settings += ["train.lr_teacher=1e-3", "train.precision=fp32"]
    ends = []
    for count in (1, 2):
        chosen, folder = recipe(squares, *settings, "train.epochs=2", "data.batch_size=8"), tmp_path / f"by-{count}"
        assert together(count, partial(epmvg.train, chosen, folder)) == [0] * count
        state = checkpoint(folder)
        ends.append(state["model"] | {f"teacher.{key}": value for key, value in state["teacher"].items()})
    first = safetensors.torch.load_file(weights)
    assert any((ends[0][f"teacher.clip.{key}"] - value).abs().max() > 1e-3 for key, value in first.items())
    for key, value in ends[0].items():
        if value.ndim > 1:
            torch.testing.assert_close(ends[1][key], value, atol=1e-4, rtol=1e-3)


@pytest.fixture
def halves(squares: Path) -> tuple[Path, Path]:
    """The squares with boxes on half of the training images; and all their training phrases without boxes."""
    rows = [json.loads(line) for line in squares.read_text().splitlines()]
    train = list(dict.fromkeys(row["image"] for row in rows if row["split"] == "train"))
    texts = [{"image": image, "phrases": [row["phrase"] for row in rows if row["image"] == image]} for image in train]
    texts.append({"image": "missing.png", "phrase": "the lost square"})
    texts += [{"image": row["image"], "phrase": row["phrase"], "split": "val"} for row in rows if row["split"] == "val"]
    unlabeled = squares.with_name("unlabeled.jsonl")
    unlabeled.write_text("".join(json.dumps(line) + "\n" for line in texts))
    kept = [row for row in rows if row["image"] not in train[::2]]
    squares.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return squares, unlabeled


def test_unlabeled_images_reach_the_teachers_losses_only_and_a_run_resumes(
    halves: tuple[Path, Path], vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squares, unlabeled = halves
    settings = [f"distill.teacher={vit}", "distill.dense_weight=1", "train.epochs=3"]
    settings += [f"distill.unlabeled={unlabeled}", "distill.unlabeled_ratio=1.5"]
    seen: list[Sample] = []
    monkeypatch.setattr(loop, "check_finite", before_each_backward(lambda run, batch: seen.extend(batch.samples)))
    reported: list[dict[str, Any]] = []
    whole = epmvg.train(recipe(squares, *settings), tmp_path / "whole", report=reported.append)
    assert [row["rows"] for row in reported if row["event"] == "skipped"] == [1]  # the image is missing
    assert [bool(sample.weight) for sample in seen].count(True) == 3 * 12
    assert costs(recipe(squares, *settings))["steps"] == max(row.get("step", 0) for row in reported)
    without = [(sample.image.name, sample.phrase) for sample in seen if not sample.weight]
    assert len(without) == 3 * 18 and len(set(without)) == 24  # all 24, but none of val and none without an image
    monkeypatch.setattr(loop, "check_finite", killed_at(8))
    with pytest.raises(KilledError):
        epmvg.train(recipe(squares, *settings), tmp_path / "cut")
    monkeypatch.undo()
    monkeypatch.setenv("EPMVG_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(unlabeled.parent)
    settings[3] = f"distill.unlabeled={unlabeled.name}"  # the same file
    assert same_weights(whole, epmvg.train(recipe(squares, *settings), tmp_path / "cut", resume=True))
    for file in epmvg.save_pretrained(whole, tmp_path / "public").rglob("*"):
        assert not file.is_file() or str(tmp_path).encode() not in file.read_bytes(), file
    assert cache_teacher(recipe(squares, *settings))["embeddings"] > 0
    assert {sample.image for sample in seen} <= (learned := training_images(whole) or set())
    assert len(learned - {sample.image for sample in seen}) == 1  # only the missing one is none that it learned from


def test_phrases_of_unlabeled_images_depend_on_no_process_or_micro_batch(
    halves: tuple[Path, Path], vit: Path, tmp_path: Path
) -> None:
    """One process, two, and two micro-batches: means over the boxes, and over all phrases, are the step's."""
    squares, unlabeled = halves
    settings = [f"distill.teacher={vit}", "distill.dense_weight=1", "train.epochs=2", "model.dropout=0"]
    settings += [f"distill.unlabeled={unlabeled}", "train.precision=fp32", "train.eval_interval=2"]
    curves = []
    for count, batch_size, accumulate in ((1, 8, 1), (1, 4, 2), (2, 8, 1)):
        own = [f"data.batch_size={batch_size}", f"train.gradient_accumulation_steps={accumulate}"]
        folder = tmp_path / f"{count}-{batch_size}"
        assert together(count, partial(epmvg.train, recipe(squares, *settings, *own), folder)) == [0] * count
        curves.append(losses(folder))
    assert len(curves[0]) == 6
    for curve in curves[1:]:
        for step, expected in zip(curve, curves[0], strict=True):
            assert step == pytest.approx(expected, rel=5e-3, abs=1e-4)


@pytest.mark.parametrize(
    "line, words",
    [
        ('{"image": "0.png"}', r"unlabeled\.jsonl line 1.*phrase"),
        (
            '{"image": "0.png", "phrase": "a", "split": "val"}',
            r"no phrases of the split train\. Check distill\.unlabeled",
        ),
        ('{"image": "none.png", "phrase": "a"}', r"None of the 1 images exists .*Check distill\.unlabeled"),
    ],
)
def test_unusable_unlabeled_images_are_named(
    halves: tuple[Path, Path], vit: Path, tmp_path: Path, line: str, words: str
) -> None:
    squares, unlabeled = halves
    unlabeled.write_text(line + "\n")
    with pytest.raises(InputError, match=words):
        epmvg.train(recipe(squares, f"distill.teacher={vit}", f"distill.unlabeled={unlabeled}"), tmp_path / "run")


def test_unfrozen_teacher_is_resumed_with_the_student(
    squares: Path, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unfrozen teacher, cut off between two saves: bit for bit the run that was never stopped."""
    settings = ["distill.frozen=false", "distill.input=letterboxed", "distill.dense_weight=1"]
    chosen = recipe(squares, f"distill.teacher={vit}", *settings, "train.epochs=2")
    whole = epmvg.train(chosen, tmp_path / "whole")
    monkeypatch.setattr(loop, "check_finite", killed_at(4))
    with pytest.raises(KilledError):
        epmvg.train(chosen, tmp_path / "cut")
    monkeypatch.undo()
    monkeypatch.setenv("EPMVG_CACHE", str(tmp_path / "cache"))
    cut = epmvg.train(chosen, tmp_path / "cut", resume=True)
    expected, resumed = (checkpoint(folder) for folder in (whole, cut))
    for name in ("model", "teacher"):
        assert all(torch.equal(tensor, resumed[name][key]) for key, tensor in expected[name].items()), name


@pytest.mark.parametrize(("off", "encoder"), [("image", "encode_image"), ("text", "encode_text")])
@pytest.mark.parametrize("frozen", [True, False])
def test_encoder_of_a_loss_with_weight_0_never_runs(
    squares: Path, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: str, encoder: str, frozen: bool
) -> None:
    chosen = recipe(
        squares, f"distill.teacher={vit}", f"distill.{off}_weight=0", f"distill.frozen={frozen}", "train.epochs=0.5"
    )
    opened = teachers.open_teacher

    def without_encoder(recipe: Recipe, model: Grounder | None = None) -> ClipTeacher | None:
        teacher = opened(recipe, model)
        assert teacher is not None
        monkeypatch.setattr(teacher.clip, encoder, None)
        return teacher

    for module in (teachers, prepare):
        monkeypatch.setattr(module, "open_teacher", without_encoder)
    if frozen:
        cache_teacher(chosen)
    (step,) = losses(epmvg.train(chosen, tmp_path / "run"))[:1]
    assert off not in step and {"image", "text"} - {off} < step.keys()


def test_dense_training_after_caching_computes_nothing_new(squares: Path, vit: Path, tmp_path: Path) -> None:
    chosen = recipe(squares, f"distill.teacher={vit}", "distill.dense_weight=1", "train.epochs=1")
    built = cache_teacher(chosen)
    assert built["embeddings"] == 2 * 6 + 4  # images and their mirror images with their patches, phrases
    epmvg.train(chosen, tmp_path / "run")
    assert cache_teacher(chosen)["embeddings"] == built["embeddings"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["distill.frozen=false", "distill.input=image"], r"distill\.input=letterboxed"),
        (["distill.image_weight=0", "distill.text_weight=0"], r"Set distill=null"),
        (["distill.loss=l3"], r"distill\.loss='l3' does not fit"),
        (["loss.giou_weight=0", "loss.box_weight=0"], r"are both 0"),
        (["distill.dense_weight=1", "model.similarity=false"], r"Set distill\.dense_weight=0"),
        (["distill.dense_weight=1", "model.name=tiny-swin"], r"one stride"),
    ],
)
def test_contradicting_settings_are_rejected(
    squares: Path, vit: Path, tmp_path: Path, settings: list[str], words: str
) -> None:
    with pytest.raises(InputError, match=words) as refused:
        epmvg.train(recipe(squares, f"distill.teacher={vit}", *settings), tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_every_distill_setting_has_a_command_in_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "distill.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("epmvg")]
    shown = set()
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        if words[:2] != ["teacher", "train"]:
            source, *settings = words[2:] if words[0] == "teacher" else words[1:]
            settings = settings[: settings.index("--out")] if "--out" in settings else settings
            Recipe.load(source, *settings)
            shown |= {setting.partition("=")[0] for setting in settings}
    assert {f"distill.{name}" for name in DistillSettings.model_fields} - shown == {"distill.teacher"}
    assert {"distill", "loss.giou_weight", "model.vls", "train.lr_teacher"} < shown


def test_distillation_costs_nothing_at_inference(squares: Path, vit: Path, tmp_path: Path) -> None:
    """Same parameters, same size of file, and prediction imports neither open_clip nor `epmvg.distill`."""
    settings = ["train.epochs=0.5", "model.vls=mean"]
    plain = epmvg.train(recipe(squares, "distill=null", *settings), tmp_path / "plain")
    teacher = [f"distill.teacher={vit}", "distill.dense_weight=1"]
    distilled = epmvg.train(recipe(squares, *teacher, *settings), tmp_path / "distilled")
    files = [folder / "model.safetensors" for folder in (plain, distilled)]
    shapes = [{k: v.shape for k, v in safetensors.torch.load_file(file).items()} for file in files]
    assert shapes[0] == shapes[1]
    assert files[0].stat().st_size == files[1].stat().st_size
    code = (
        "import sys, epmvg\n"
        "(prediction,) = epmvg.Predictor(sys.argv[1])(sys.argv[2], ['the red square'])\n"
        "print(prediction.box)\n"
        "sys.exit(any(name.split('.')[0] == 'open_clip' or name.startswith('epmvg.distill') for name in sys.modules))"
    )
    command = [sys.executable, "-c", code, str(distilled), str(squares.parent / "0.png")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and result.stdout.startswith("("), result.stderr
