"""From a recipe to all that its training works on."""

from __future__ import annotations

from pathlib import Path

import accelerate
from torch import nn

from epmvg.config.settings import ModelSettings, Recipe
from epmvg.data.negatives import NegativeSampler
from epmvg.distill.losses import GroundingLoss
from epmvg.models.factory import create_model, init_from
from epmvg.models.grounder import Grounder
from epmvg.models.pretrained import load_pretrained
from epmvg.models.text_cache import TextFeatureCache
from epmvg.training.agreement import agreed
from epmvg.training.loaders import loaders_of
from epmvg.training.optimizer import StepCount, make_optimizer
from epmvg.training.processes import start_alike
from epmvg.training.run import Report, Run
from epmvg.training.teacher import check_student, lesson_of, open_teacher


def prepare_run(
    recipe: Recipe, folder: Path, accelerator: accelerate.PartialState, report: Report, *, resume: bool = False
) -> Run:
    settings = recipe.train
    accelerate.utils.set_seed(settings.seed)  # all processes start from the same weights
    with agreed():
        student, new = _student(recipe.model)
        if recipe.distill is not None:
            check_student(student, recipe.distill)
        student.set_grad_checkpointing(settings.gradient_checkpointing)
        clip = open_teacher(recipe)
        loader, val, samples = loaders_of(recipe, student, accelerator, report, resume=resume)
        count = StepCount.of(len(loader), settings)
        count.check(settings)
        lesson = None if clip is None else lesson_of(recipe, clip.to(accelerator.device))
    if not accelerator.is_main_process:
        accelerate.utils.set_seed(settings.seed + accelerator.process_index)  # and drop out different neurons
    student.to(accelerator.device)
    beside: dict[str, nn.Module] = {} if clip is None or clip.frozen else {"teacher": clip}
    for part in (student, *beside.values()):
        start_alike(part, accelerator.num_processes)
    return Run(
        recipe=recipe,
        folder=folder,
        student=student,
        lesson=lesson,
        loss_of=_loss(recipe),
        loader=loader,
        val=val,
        optimizer=make_optimizer(student, settings, new, beside),
        accelerator=accelerator,
        count=count,
        new=new,
        beside=beside,
        report=report,
        text_memory=TextFeatureCache(student.text_encoder) if student.text_encoder.frozen else None,
        absence=NegativeSampler(loader.samples)
        if student.iou_head is not None and settings.negatives_per_phrase
        else None,
        samples=samples,
        teacher=clip.fingerprint() if clip is not None and clip.frozen else None,
    )


def _student(settings: ModelSettings) -> tuple[Grounder, list[str]]:
    """Build the student; return it and the names of its parameters that keep their random start."""
    student = create_model(settings.name, **settings.overrides)
    loaded: set[str] = set()
    if settings.init_from is not None:
        loaded = init_from(student, settings.init_from)
    elif settings.pretrained:
        loaded = load_pretrained(student)
    return student, [name for name, _ in student.named_parameters() if name not in loaded]


def _loss(recipe: Recipe) -> GroundingLoss:
    settings = recipe.loss.model_dump()
    if recipe.distill is not None:
        settings |= recipe.distill.model_dump(include={"image_weight", "text_weight", "dense_weight"})
        settings["distill_loss"] = recipe.distill.loss
    return GroundingLoss(**settings)
