"""The teacher of a recipe, its distillation targets, and their computation ahead of a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from epmvg.config.settings import Recipe
from epmvg.core.files import write_text
from epmvg.core.hardware import select_device
from epmvg.core.types import InputError, Progress
from epmvg.data.readers.files import cache_folder
from epmvg.data.side_words import swap_sides
from epmvg.distill.target_cache import CachedTeacher
from epmvg.distill.targets import DistillationTargets
from epmvg.distill.teacher import ClipTeacher
from epmvg.models.grounder import Grounder
from epmvg.training.data import open_training_samples, open_unlabeled_samples


def open_teacher(recipe: Recipe, model: Grounder | None = None) -> ClipTeacher | None:
    """Open the teacher of a recipe, or return None without one.

    Args:
        recipe: With or without a teacher.
        model: The student, which must have what the teacher supervises.

    Raises:
        InputError: The teacher cannot be opened, or does not fit the student or the recipe.
    """
    distill = recipe.distill
    if distill is None:
        return None
    if recipe.train.cache_features and distill.input != "image":
        raise InputError("train.cache_features=true opens no images. Set distill.input=image.")
    if distill.dense_weight and model is not None:
        if model.similarity is None and not model.dense_head:
            raise InputError(
                "distill.dense_weight supervises a similarity map or heatmap, which this student lacks. Set "
                "distill.dense_weight=0 or model.similarity=true."
            )
        if len(model.visual_encoder.strides) > 1:
            raise InputError(
                "distill.dense_weight needs a student with one feature level. Set distill.dense_weight=0, or give one "
                "stride."
            )
    return ClipTeacher(distill.teacher, distill.pretrained, quick_gelu=distill.quick_gelu, frozen=distill.frozen)


def distillation_targets(recipe: Recipe, teacher: ClipTeacher) -> DistillationTargets:
    """Return the targets that a recipe sets; a frozen teacher's embeddings are cached on disk."""
    distill = recipe.distill
    assert distill is not None
    return DistillationTargets(
        CachedTeacher(teacher, cache_folder() / "teachers") if teacher.frozen else teacher,
        from_files=distill.input == "image",
        embeddings=distill.sides,
        dense=distill.dense_weight > 0,
    )


def write_description(teacher: ClipTeacher, folder: Path) -> None:
    """Write teacher.json, which names the teacher of a run, into its folder."""
    description = json.dumps(teacher.description(), indent=1, ensure_ascii=False, default=str)
    write_text(folder / "teacher.json", description + "\n")


def cache_teacher(recipe: Recipe, progress: Progress | None = None, device: str = "auto") -> dict[str, Any]:
    """Compute ahead the embeddings of a frozen teacher that a training by the recipe needs.

    Phrases, also with left and right swapped where images are flipped; images (with patches for `distill.dense_weight`)
    if the teacher takes the plain image. What is cached already is not computed again.

    Args:
        recipe: With a frozen teacher.
        progress: Called with (done, total).
        device: "auto" or one of torch's.

    Returns:
        `embeddings` and `megabytes` of the cache, its `file`, and `skipped` images with the reason.

    Raises:
        InputError: The recipe has no frozen teacher, or its data cannot be read.
    """
    teacher, distill = open_teacher(recipe), recipe.distill
    if teacher is None or distill is None or not teacher.frozen:
        raise InputError("This recipe has no frozen teacher. Give distill=NAME or distill=FOLDER.")
    samples = [*open_training_samples(recipe, lambda row: None), *open_unlabeled_samples(recipe, lambda row: None)]
    flips = recipe.data.augment is not None and recipe.data.augment.horizontal_flip > 0
    phrases = [sample.phrase for sample in samples] if distill.text_weight or distill.dense_weight else []
    if flips:
        phrases += [swap_sides(phrase) for phrase in phrases]
    uses_images = distill.input == "image" and (distill.image_weight or distill.dense_weight)
    images = [sample.image for sample in samples] if uses_images else []
    cached = CachedTeacher(teacher.to(select_device(device)), cache_folder() / "teachers")
    skipped = cached.precompute(phrases, images, progress, mirrored=flips, patches=distill.dense_weight > 0)
    cache = cached.cache
    megabytes = round(cache.nbytes / 1e6, 2)
    return {"embeddings": len(cache), "megabytes": megabytes, "file": str(cache.path), "skipped": skipped}
