"""The teacher of a recipe: opened, asked beforehand, and refused where a student could not follow it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from epmvg.config.settings import DistillSettings, Recipe
from epmvg.core.files import write_text
from epmvg.core.hardware import select_device
from epmvg.core.types import InputError, Progress
from epmvg.data.readers.annotations import Skipped
from epmvg.data.readers.files import cache_folder
from epmvg.data.registry import fraction_of, open_samples
from epmvg.data.side_words import swap_sides
from epmvg.distill.target_cache import CachedTeacher
from epmvg.distill.targets import Lesson
from epmvg.distill.teacher import ClipTeacher, View
from epmvg.models.grounder import Grounder
from epmvg.training.loaders import with_photo


def open_teacher(recipe: Recipe) -> ClipTeacher | None:
    """Open the teacher of a recipe."""
    distill = recipe.distill
    if distill is None:
        return None
    if recipe.train.cache_features and distill.input != "image":
        raise InputError("train.cache_features=true opens no pictures: set distill.input=image.")
    view: View = "cropped" if distill.input == "cropped" else "letterboxed"
    return ClipTeacher(
        distill.teacher, distill.pretrained, quick_gelu=distill.quick_gelu, frozen=distill.frozen, view=view
    )


def write_teacher(teacher: ClipTeacher, folder: Path) -> None:
    """Write into a run's folder which CLIP taught it: teacher.json."""
    described = json.dumps(teacher.description(), indent=1, ensure_ascii=False, default=str)
    write_text(folder / "teacher.json", described + "\n")


def check_student(student: Grounder, distill: DistillSettings) -> None:
    """Refuse what this student could not learn."""
    if distill.dense_weight and student.similarity is None and not student.dense_head:
        raise InputError(
            "distill.dense_weight supervises a map that this student lacks: "
            "set distill.dense_weight=0 or model.similarity=true."
        )
    if distill.dense_weight and len(student.visual_encoder.strides) > 1:
        raise InputError(
            "distill.dense_weight needs one map of visual tokens: set distill.dense_weight=0, or give one stride."
        )


def lesson_of(recipe: Recipe, clip: ClipTeacher) -> Lesson:
    """Plan what the teacher is asked; what a frozen one has answered before comes from its files."""
    distill = recipe.distill
    assert distill is not None
    return Lesson(
        CachedTeacher(clip, cache_folder() / "answers") if clip.frozen else clip,
        photo=distill.input == "image",
        fixed=recipe.data.augment is None,
        sides=distill.sides,
        dense=distill.dense_weight > 0,
    )


def cache_teacher(recipe: Recipe, progress: Progress | None = None, device: str = "auto") -> dict[str, Any]:
    """Ask the recipe's frozen teacher beforehand what its training will ask: phrases, and photos unless it sees views.

    Where images are flipped, phrases are asked in both spellings and photos mirrored too; photos with their patches
    where `distill.dense_weight` wants them, and nothing about a side whose weight is 0. What was answered before
    is kept, so a pass that was cut off goes on where it was.

    Args:
        recipe: with a frozen teacher.
        progress: called with (done, all).
        device: "auto" or one of torch's.

    Returns:
        answers and megabytes of the file, seconds of the pass, `skipped` photos and why, and the file's path.

    Raises:
        InputError: the recipe has no frozen teacher, or its data cannot be read.
    """
    teacher = open_teacher(recipe)
    distill = recipe.distill
    if teacher is None or distill is None or not teacher.frozen:
        raise InputError("There is no frozen teacher in this recipe: give distill=NAME or distill=FOLDER.")
    data, skipped = recipe.data, Skipped()
    records = open_samples(data.name, split=data.train_split, root=data.root, split_key=data.split_key, skipped=skipped)
    records = fraction_of(with_photo(records, skipped), data.fraction)
    flips = data.augment is not None and data.augment.horizontal_flip > 0
    phrases = [record.phrase for record in records] if distill.text_weight or distill.dense_weight else []
    if flips:
        phrases += [swap_sides(phrase) for phrase in phrases]
    looks = distill.input == "image" and (distill.image_weight or distill.dense_weight)
    photos = [record.image for record in records] if looks else []
    cached = CachedTeacher(teacher.to(select_device(device)), cache_folder() / "answers")
    built = cached.fill(phrases, photos, progress, mirrored=flips, patches=distill.dense_weight > 0)
    return built | {"file": str(cached.answers.path)}
