"""From a table to trainings: which recipe and overrides a cell stands for at a scale, and what they would cost."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from epmvg.config.settings import DataSettings, Recipe
from epmvg.core.types import InputError, Sample
from epmvg.data.loader import group_by_image
from epmvg.data.negatives import content_words
from epmvg.data.readers.annotations import Skipped
from epmvg.data.registry import DATASETS, fraction_of, open_samples
from epmvg.experiments.demo import TEACHER_SETTINGS
from epmvg.experiments.reproduce.tables import Row, Table, published_phrases
from epmvg.models.factory import create_model, measure
from epmvg.models.presets import PRESETS, preset
from epmvg.training.optimizer import StepCount

OWN_TEACHER = "own-teacher"
"""Folder, below a scale's, of the teacher that small scales train for themselves."""

THROUGHPUT = 40e12
"""Floating-point operations a second that estimates assume: a quarter of an A100's 156e12 in TF32."""

PASSES = 3  # of arithmetic a training step: forward once, backward about twice that

MINI = "mini is the only student at this scale"


@dataclass(frozen=True, slots=True)
class Scale:
    """How large a reproduction is."""

    name: str
    about: str
    recipe: str | None = None  # None: each published data set has a recipe of its name
    splits: tuple[str, ...] = ()  # what is scored where the recipe is not a column's own
    teacher: dict[str, Any] | None = None  # how `train_teacher` makes the scale's own; None: the recipe names one

    def splits_of(self, table: Table, data: str) -> tuple[str, ...]:
        """Return the splits of a table's data set that are scored."""
        return self.splits or tuple(split for name, split in table.columns if name == data)


SCALES = {
    scale.name: scale
    for scale in (
        Scale(
            "scenes",
            "Drawn scenes and the demo's recipe. These are not the paper's data: compare rows with each other only.",
            "scenes",
            ("val", "test", "open"),
            TEACHER_SETTINGS,
        ),
        Scale(
            "mini",
            "6,156 real photos. These are not the paper's splits: compare rows with each other only.",
            "flickr-mini",
            ("val", "test"),
            {},
        ),
        Scale("paper", "The paper's data, sizes and schedule (sec. 4.2)."),
    )
}


@dataclass(frozen=True, slots=True)
class Job:
    """One training: a setting on a data set with a seed."""

    recipe: Recipe
    splits: tuple[str, ...]
    folder: Path
    settings: str  # their hash: the same for all seeds

    @property
    def seed(self) -> int:
        return self.recipe.train.seed


@dataclass(frozen=True, slots=True)
class Setting:
    """A row on one data set: its trainings, or why there are none."""

    data: str
    splits: tuple[str, ...]
    jobs: tuple[Job, ...]
    remark: str = ""

    @property
    def folder(self) -> Path:
        """Where its trainings lie, which equal settings share."""
        return self.jobs[0].folder.parent if self.jobs else Path(self.data)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one training would take."""

    phrases: int  # of the train split
    counted: bool  # from the data itself; else the published number
    epochs: float
    steps: int
    gpu_hours: float  # of one training, at THROUGHPUT


def plan_row(
    row: Row, table: Table, scale: Scale, *, seeds: int, out: Path, root: str | None, overrides: Sequence[str]
) -> list[Setting]:
    """Plan a row's trainings, one setting a data set; a cited system has none.

    Raises:
        InputError: an override that does not fit.
    """
    if row.student is None:
        return []
    if scale.recipe is not None and row.student != "transvg-r50":
        return [Setting(scale.recipe, scale.splits, (), f"no counterpart: {MINI}, and it stands for TransVG")]
    settings = []
    for data in dict.fromkeys([scale.recipe] if scale.recipe else [name for name, _ in table.columns]):
        splits = scale.splits_of(table, data)
        base = _recipe(row, scale, data, out, root, overrides)
        key = settings_hash(base)
        jobs = []
        for seed in range(base.train.seed, base.train.seed + seeds):
            recipe = base.model_copy(update={"train": base.train.model_copy(update={"seed": seed})})
            kind = "plain" if base.distill is None else "distilled"
            folder = out / scale.name / f"{data}-{base.model.name}-{kind}-{key}" / f"seed-{seed}"
            jobs.append(Job(recipe, splits, folder, key))
        settings.append(Setting(data, splits, tuple(jobs), _remark(row, scale, base)))
    return settings


def _recipe(row: Row, scale: Scale, data: str, out: Path, root: str | None, overrides: Sequence[str]) -> Recipe:
    """Return the recipe of a row on a data set: what the row says stands over `overrides`."""
    said = [f"data.root={root}"] if root else []
    changed = [_override(key, value) for key, value in row.settings.items()]
    if row.distill is None:
        said += ["distill=null", *(each for each in overrides if not each.startswith("distill")), *changed]
    else:
        if scale.teacher is not None:
            # The paper's own terms: what a recipe of ours adds to them is left out.
            said += ["distill=null", f"distill.teacher={out / scale.name / OWN_TEACHER}"]
        said += overrides
        said += [*changed, *(_override(f"distill.{key}", value) for key, value in row.distill.items())]
        if _sees_canvas(row):
            said.append(
                "train.cache_features=false"
            )  # stored features open no pictures, and this teacher must see them
    if scale.recipe is None:
        said.append(f"model.name={row.student}")
    recipe = Recipe.load(data, *said)
    weight = row.giou * recipe.loss.giou_weight
    train = recipe.train
    longer = {"epochs": row.epochs * train.epochs, "eval_interval": row.epochs * train.eval_interval}
    return recipe.model_copy(
        update={
            "loss": recipe.loss.model_copy(update={"giou_weight": weight}),
            "train": train.model_copy(update=longer),
        }
    )


def _override(key: str, value: Any) -> str:
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def _remark(row: Row, scale: Scale, recipe: Recipe) -> str:
    """Return where a row's setting means something else than in the paper, or is not the paper's."""
    said = []
    if row.distill is not None and not row.distill.get("frozen", True):
        said.append(
            f"train.lr_teacher={recipe.train.lr_teacher:g} is ours; the paper names 1e-5 for what is pretrained"
        )
    if scale.recipe is None:
        if preset(recipe.model.name, **recipe.model.overrides)["visual_encoder"].get("gates") == "normal_init":
            said.append("gates repaired, not zero as published (docs/paper.md)")
        return "; ".join(said)
    said.append("mini in TransVG's place")
    if row.giou != 1:
        said.append(f"lambda multiplies the recipe's own weight of GIoU: {recipe.loss.giou_weight:g} here")
    if _sees_canvas(row):
        said.append("the teacher sees the student's view, and no features are stored")
    return "; ".join(said)


def _sees_canvas(row: Row) -> bool:
    return row.distill is not None and row.distill.get("input") == "letterboxed"


def settings_hash(recipe: Recipe) -> str:
    """Hash what decides a training but its seed and where its files lie."""
    values = recipe.model_dump(exclude={"name": True, "about": True})
    values["train"].pop("seed")
    for key in ("root", "num_workers", "cache_gb"):
        values["data"].pop(key)
    if values["distill"] and Path(values["distill"]["teacher"]).name == OWN_TEACHER:
        values["distill"]["teacher"] = OWN_TEACHER
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def data_hash(recipe: Recipe, splits: Sequence[str]) -> str:
    """Hash the rows that are learned from and scored: image names, phrases and boxes.

    Raises:
        InputError: the data is not at hand.
    """
    key = hashlib.sha256()
    for split in dict.fromkeys((recipe.data.train_split, recipe.data.val_split, *splits)):
        for record in records_of(recipe.data, split):
            key.update(f"{split}\t{record.image.name}\t{record.phrase}\t{record.box}\n".encode())
    return key.hexdigest()[:8]


def records_of(data: DataSettings, split: str) -> tuple[Sample, ...]:
    """Read a split as training does: in the train split, rows that cannot be used are left out."""
    return _read(data.name, data.root, data.split_key, split, split == data.train_split)


def names_learned(data: DataSettings) -> frozenset[str]:
    """Return every word that may name a thing in the phrases that a training learns from."""
    return _names(data.name, data.root, data.split_key, data.train_split, data.fraction)


@functools.lru_cache(maxsize=8)
def _names(name: str, root: str | None, split_key: str, split: str, share: float) -> frozenset[str]:
    records = fraction_of(list(_read(name, root, split_key, split, tolerant=True)), share)
    return frozenset[str]().union(*(content_words(phrase) for phrase in {record.phrase for record in records}))


def forget_records() -> None:
    """Read data anew when it is next asked for."""
    _read.cache_clear()
    _names.cache_clear()


@functools.lru_cache(maxsize=8)
def _read(name: str, root: str | None, split_key: str, split: str, tolerant: bool) -> tuple[Sample, ...]:
    skipped = Skipped() if tolerant else None
    return tuple(open_samples(name, split=split, root=root, split_key=split_key, skipped=skipped))


def trouble_of(recipe: Recipe, splits: Sequence[str]) -> str:
    """Say what of a training's data is not at hand; "" where nothing is missing."""
    try:
        for split in dict.fromkeys((recipe.data.train_split, recipe.data.val_split, *splits)):
            images = {record.image for record in records_of(recipe.data, split)}
            if not any(image.is_file() for image in images):
                return f"none of the {len(images):,} photos of {recipe.data.name} {split} is there ({min(images)})"
    except InputError as error:
        return str(error)
    return ""


def is_undrawn(data: DataSettings) -> bool:
    """Say whether opening the data would first draw it, which is no part of planning."""
    folder = Path(data.root) if data.root else DATASETS["scenes"].default_root()
    return data.name == "scenes" and folder is not None and not (folder / "annotations.jsonl").exists()


def estimate(recipe: Recipe) -> Estimate | None:
    """Estimate one training from the data, or from its published size where it is not at hand; None where neither is.

    Arithmetic of the student alone: PASSES times that of its images and phrases (`models.factory.measure`). A frozen
    teacher answers each photo and phrase once, and what it answered is kept.
    """
    data = recipe.data
    try:
        records = [] if is_undrawn(data) else fraction_of(list(records_of(data, data.train_split)), data.fraction)
    except InputError:
        records = []
    phrases = len(records) or published_phrases(data.name)
    if phrases is None:
        return None
    phrases = phrases if records else round(phrases * data.fraction)
    groups = sum(-(-len(rows) // data.phrases_per_image) for rows in group_by_image(records).values()) or -(
        -phrases // data.phrases_per_image
    )
    whole, further = _gflops(recipe.model.name, json.dumps(recipe.model.overrides, sort_keys=True))
    epoch = (whole - further) * groups + further * phrases
    steps = StepCount.of(-(-phrases // data.batch_size), recipe.train).total
    hours = PASSES * recipe.train.epochs * epoch * 1e9 / THROUGHPUT / 3600
    return Estimate(phrases, bool(records), recipe.train.epochs, steps, hours)


@functools.lru_cache(maxsize=8)
def _gflops(name: str, overrides: str) -> tuple[float, float]:
    """Cost of one image with a phrase, and of a further phrase; a preset as it stands was measured beforehand."""
    numbers = json.loads(overrides)
    if preset(name, **numbers) == PRESETS[name]:
        costs = json.loads((resources.files("epmvg.models") / "sizes.json").read_text(encoding="utf-8"))[name]
    else:
        costs = measure(create_model(name, **numbers))
    return costs["gflops"], costs["phrase_gflops"]
