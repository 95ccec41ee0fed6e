"""From a recipe to all that its training works on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import accelerate
import torch
from torch import nn

from epmvg.config import ModelSettings, Recipe, TrainSettings
from epmvg.data.absent import Absence
from epmvg.data.loader import GroundingLoader
from epmvg.data.shard_loader import ShardLoader
from epmvg.distill.losses import GroundingLoss, Regressor
from epmvg.models.factory import create_model, start_from
from epmvg.models.grounder import Grounder
from epmvg.models.memory import TextMemory
from epmvg.training.agreement import agreed
from epmvg.training.lessons import check_student, lesson_of, open_teacher
from epmvg.training.loaders import loaders_of
from epmvg.training.optimizer import parameter_groups
from epmvg.training.run import Report, Run
from epmvg.training.spread import spread
from epmvg.types import InputError


def prepare_run(recipe: Recipe, folder: Path, accelerator: accelerate.Accelerator, report: Report) -> Run:
    settings = recipe.train
    accelerate.utils.set_seed(settings.seed)  # all processes start from the same weights
    with agreed():
        student = _student(recipe.model)
        if recipe.distill is not None:
            check_student(student, recipe.distill)
        student.checkpoint_layers(settings.checkpoint_layers)
        clip = open_teacher(recipe)
        regressor = None
        if clip is not None and recipe.distill is not None and recipe.distill.fit == "linear":
            regressor = Regressor(student.width, clip.width, recipe.distill.sides)
        loader, val, samples = loaders_of(recipe, student, accelerator, report)
        lesson = None if clip is None else lesson_of(recipe, clip.to(accelerator.device))
        board = _board(folder) if settings.tensorboard and accelerator.is_main_process else None
    if not accelerator.is_main_process:
        accelerate.utils.set_seed(settings.seed, device_specific=True)  # and drop out different neurons
    # BERT's layers are most of a paper preset's weights, and are asked once a pass whatever the batch.
    network = spread(student, accelerator, cast(Any, student.linguistic.bert).encoder.layer)
    mapped = None if regressor is None else spread(regressor, accelerator)
    groups = parameter_groups(student, settings, clip, regressor)
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    beside = {"teacher": None if clip is None or clip.frozen else clip, "regressor": regressor}
    return Run(
        recipe=recipe,
        folder=folder,
        student=student,
        lesson=lesson,
        loss_of=_loss(recipe, mapped),
        loader=loader,
        val=val,
        optimizer=accelerator.prepare_optimizer(optimizer),
        accelerator=accelerator,
        network=network,
        beside={name: part for name, part in beside.items() if part is not None},
        report=report,
        text_memory=TextMemory(student.linguistic) if student.linguistic.frozen else None,
        absence=_absence(student, loader, settings),
        samples=samples,
        teacher=clip.fingerprint() if clip is not None and clip.frozen else None,
        board=board,
    )


def _absence(student: Grounder, loader: GroundingLoader | ShardLoader, settings: TrainSettings) -> Absence | None:
    """Say which phrases are absent where; of a stream too little is known to say."""
    if student.score_head is None or not settings.absent or isinstance(loader, ShardLoader):
        return None
    return Absence(loader.records)


def _student(settings: ModelSettings) -> Grounder:
    if settings.start is None:
        return create_model(settings.preset, settings.pretrained, **settings.set)
    student = create_model(settings.preset, **settings.set)
    start_from(student, settings.start)
    return student


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("train.tensorboard=true needs TensorBoard: pip install 'epmvg[tensorboard]'.") from error
    return SummaryWriter(str(folder / "tensorboard"))


def _loss(recipe: Recipe, regressor: nn.Module | None) -> GroundingLoss:
    settings = recipe.loss.model_dump()
    if recipe.distill is not None:
        settings |= recipe.distill.model_dump(include={"image", "text", "dense", "distance", "at"})
    return GroundingLoss(**settings, regressor=regressor)
