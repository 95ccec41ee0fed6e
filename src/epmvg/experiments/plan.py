"""From a table to trainings: the recipe of each row at a scale, and the size of its trainings."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epmvg.config.settings import DataSettings, Recipe
from epmvg.core.types import InputError, Sample
from epmvg.data.readers.annotations import Skipped
from epmvg.data.registry import DATASETS, fraction_of, open_samples, open_unlabeled
from epmvg.experiments.tables import Row, Table
from epmvg.training.optimizer import StepCount

OWN_TEACHER = "own-teacher"
"""Folder, in a scale's, of teachers that small scales and grids train for themselves."""

OWN_UNLABELLED = "unlabeled"
"""Folder, in a scale's, of the scenes without boxes that a grid draws for itself; it ends in their number."""


def own_teacher_name(captions: int, settings: Mapping[str, Any]) -> str:
    """Return the name of a teacher that a scale, or a grid from so many captioned scenes, trains for itself."""
    return f"{OWN_TEACHER}-{captions}-{_digest(dict(settings))}"


def own_teacher_captions(name: str) -> int | None:
    """Return how many captioned scenes of a grid such a teacher learns from, 0 of a scale's; None of other teachers."""
    own = re.fullmatch(rf"{OWN_TEACHER}-(\d+)-[0-9a-f]{{8}}", Path(name).name)
    return None if own is None else int(own[1])


def is_own_teacher(name: str) -> bool:
    """Return whether a teacher is one that a scale or a grid trains for itself."""
    return own_teacher_captions(name) is not None


def is_own_unlabeled(file: str | None) -> bool:
    """Return whether a file of images without boxes is one that a grid draws for itself."""
    return file is not None and re.fullmatch(rf"{OWN_UNLABELLED}-\d+", Path(file).parent.name) is not None


@dataclass(frozen=True, slots=True)
class Scale:
    """The data and size of a reproduction."""

    name: str
    about: str
    recipe: str | None = None  # None: each published data set has a recipe of its name
    splits: tuple[str, ...] = ()  # evaluated where the recipe is not a column's own
    teacher: dict[str, Any] | None = None  # settings of `train_teacher`; None: the recipe names a teacher


SCALES = {
    scale.name: scale
    for scale in (
        Scale(
            "scenes",
            "Synthetic scenes and the demo's recipe. This is not the paper's data: compare rows with each other only.",
            "scenes",
            ("val", "test", "open"),
            {"image_size": 160, "epochs": 20},
        ),
        Scale(
            "mini",
            "6,156 photos. These are not the paper's splits: compare rows with each other only.",
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
    seed: int
    settings: str  # their hash: the same for all seeds
    order: int = 0  # lower ones are trained first
    hours: float | None = None  # of one core, where a grid states them


@dataclass(frozen=True, slots=True)
class Setting:
    """A row on one data set: its trainings, or a remark why there are none."""

    data: str
    splits: tuple[str, ...]
    jobs: tuple[Job, ...]
    remark: str = ""

    @property
    def folder(self) -> Path:
        """The folder of its trainings, which equal settings share."""
        return self.jobs[0].folder.parent if self.jobs else Path(self.data)


def plan_row(
    row: Row, table: Table, scale: Scale, *, seeds: int, out: Path, root: Path | str | None, overrides: Sequence[str]
) -> list[Setting]:
    """Return the trainings of a row, one setting per data set; a cited system has none.

    Raises:
        InputError: an override that does not fit.
    """
    if row.student is None:
        return []
    if scale.recipe is not None and row.student != "transvg-r50":
        remark = "no counterpart: mini is the only student at this scale, in TransVG's place"
        return [Setting(scale.recipe, scale.splits, (), remark)]
    if table.grid is not None:
        overrides = [table.grid.recipe, *overrides]
    settings = []
    for data in dict.fromkeys([scale.recipe] if scale.recipe else [name for name, _ in table.columns]):
        splits = scale.splits or tuple(split for name, split in table.columns if name == data)
        base = _recipe(row, table, scale, data, out, root, overrides)
        given = Recipe.load(data)
        if (base.data.name, base.train.seed) != (given.data.name, given.train.seed):
            raise InputError("data.name and train.seed are set by the table. Leave them out of all recipes on top.")
        key = settings_hash(base)
        jobs = []
        for seed in range(base.train.seed, base.train.seed + seeds):
            recipe = base.model_copy(update={"train": base.train.model_copy(update={"seed": seed})})
            kind = "baseline" if base.distill is None else "distilled"
            folder = out / scale.name / f"{data}-{base.model.name}-{kind}-{key}" / f"seed-{seed}"
            hours = None if table.grid is None else table.grid.hours(row)
            jobs.append(Job(recipe, splits, folder, seed, key, row.order, hours))
        settings.append(Setting(data, splits, tuple(jobs), _remark(row, scale, base)))
    return settings


def _recipe(
    row: Row, table: Table, scale: Scale, data: str, out: Path, root: Path | str | None, overrides: Sequence[str]
) -> Recipe:
    """Return the recipe of a row on a data set; the row's settings take precedence over `overrides`."""
    settings = [f"data.root={root}"] if root is not None else []
    own = [_override(key, value) for key, value in row.settings.items()]
    if row.distill is None:
        settings += ["distill=null", *(each for each in overrides if not each.startswith("distill")), *own]
    else:
        if scale.teacher is not None:  # without what a recipe of ours adds to the paper's settings
            grid = table.grid.captions if table.grid is not None else {}
            teacher = own_teacher_name(row.captions, grid.get(row.captions, scale.teacher))
            settings += ["distill=null", f"distill.teacher={out / scale.name / teacher}"]
        settings += overrides
        distill = dict(row.distill)
        if "unlabeled" in distill:
            folder = out / scale.name / f"{OWN_UNLABELLED}-{distill['unlabeled']}"
            distill["unlabeled"] = str(folder / "unlabeled.jsonl")
        settings += [*own, *(_override(f"distill.{key}", value) for key, value in distill.items())]
        if _is_letterboxed(row):
            settings.append("train.cache_features=false")  # cached features open no images, which this teacher needs
    if scale.recipe is None:
        settings.append(f"model.name={row.student}")
    values = Recipe.load(data, *settings).model_dump()
    values["loss"]["giou_weight"] *= row.giou
    recipe = Recipe.model_validate(values)
    return recipe.model_copy(update={"train": recipe.train.lengthened(row.epochs)})


def _override(key: str, value: Any) -> str:
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def _remark(row: Row, scale: Scale, recipe: Recipe) -> str:
    """Return where a row's setting differs from the paper."""
    remarks = []
    if row.distill is not None and not row.distill.get("frozen", True):
        remarks.append(
            f"train.lr_teacher={recipe.train.lr_teacher:g} is ours; the paper names 1e-5 for pretrained parts"
        )
    if scale.recipe is None:
        if not recipe.model.init_from:
            remarks.append("starts from ImageNet weights, not from a detector")
        return "; ".join(remarks)
    remarks.append("mini in TransVG's place")
    if row.giou != 1:
        remarks.append("lambda multiplies the recipe's own weight of GIoU")
    if _is_letterboxed(row):
        remarks.append("the teacher sees the student's input, and no features are cached")
    return "; ".join(remarks)


def _is_letterboxed(row: Row) -> bool:
    return row.distill is not None and row.distill.get("input") == "letterboxed"


def settings_hash(recipe: Recipe) -> str:
    """Return a hash of all that determines a training except its seed and the place of its files."""
    values = recipe.model_dump(exclude={"name": True, "about": True})
    values["train"].pop("seed")
    for key in ("root", "num_workers", "cache_gb"):
        values["data"].pop(key)
    if distill := values["distill"]:
        if is_own_teacher(distill["teacher"]):
            distill["teacher"] = Path(distill["teacher"]).name
        if is_own_unlabeled(distill["unlabeled"]):
            distill["unlabeled"] = Path(distill["unlabeled"]).parent.name
        elif distill["unlabeled"] is None:  # then neither says anything
            del distill["unlabeled"], distill["unlabeled_ratio"]
    return _digest(values)


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def data_hash(recipe: Recipe, splits: Sequence[str]) -> str:
    """Return a hash of the samples of training and evaluation: image names, phrases and boxes.

    Raises:
        InputError: the data cannot be read.
    """
    key = hashlib.sha256()
    for split in dict.fromkeys((recipe.data.train_split, recipe.data.val_split, *splits)):
        for sample in samples_of(recipe.data, split):
            key.update(f"{split}\t{sample.image.name}\t{sample.phrase}\t{sample.box}\n".encode())
    return key.hexdigest()[:8]


def samples_of(data: DataSettings, split: str) -> tuple[Sample, ...]:
    """Read a split as training does: unusable rows of the training split are skipped."""
    return _read(data.name, data.root, data.split_key, split, split == data.train_split)


def clear_cache() -> None:
    """Read data again when it is needed next."""
    _read.cache_clear()


@functools.lru_cache(maxsize=8)
def _read(name: str, root: str | None, split_key: str, split: str, tolerant: bool) -> tuple[Sample, ...]:
    skipped = Skipped() if tolerant else None
    return tuple(open_samples(name, split=split, root=root, split_key=split_key, skipped=skipped))


def missing_data(recipe: Recipe, splits: Sequence[str]) -> str:
    """Return what of a training's data is missing, "" for nothing; a grid draws its images without boxes itself."""
    problem, file = _missing_samples(recipe, splits), recipe.unlabeled
    if file is None or is_own_unlabeled(file):
        return problem
    try:
        open_unlabeled(file, recipe.data.train_split)
    except InputError as error:
        return f"{problem} {error}".lstrip()
    return problem


def _missing_samples(recipe: Recipe, splits: Sequence[str]) -> str:
    """Return which annotations or images are missing; training leaves out those of its split."""
    data = recipe.data
    try:
        for split in dict.fromkeys((data.train_split, data.val_split, *splits)):
            images = {sample.image for sample in samples_of(data, split)}
            missing = {image for image in images if not image.is_file()}
            if missing and (split != data.train_split or missing == images):
                count = f"{len(missing):,} of {len(images):,}"
                return f"{count} images of {data.name} {split} are missing (first: {min(missing)})."
    except InputError as error:
        return str(error)
    return ""


def size_of(recipe: Recipe, splits: Sequence[str] = ()) -> dict[str, Any]:
    """Return `phrases` of the training split and `steps`, None without the data, and what is `missing` of it."""
    data = recipe.data
    folder = Path(data.root) if data.root else DATASETS["scenes"].default_root()
    if data.name == "scenes" and folder is not None and not (folder / "annotations.jsonl").exists():
        return {"phrases": None, "steps": None, "missing": ""}  # they are drawn on first use
    if missing := missing_data(recipe, splits):
        return {"phrases": None, "steps": None, "missing": missing}
    phrases = len(fraction_of(list(samples_of(data, data.train_split)), data.fraction))
    return {"phrases": phrases, "steps": count_steps(recipe, phrases), "missing": ""}


def count_steps(recipe: Recipe, phrases: int) -> int:
    """Return the optimizer steps on a number of phrases with boxes and those without that a recipe adds to them."""
    phrases += round(recipe.unlabeled_ratio * phrases)
    return StepCount.of(-(-phrases // recipe.data.batch_size), recipe.train).total
