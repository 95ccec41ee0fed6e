"""Build a run from a recipe."""

from __future__ import annotations

from pathlib import Path

import accelerate
import torch

from epmvg.config.published import missing_start
from epmvg.config.settings import ModelSettings, Recipe
from epmvg.core.hardware import use_bf16
from epmvg.core.types import InputError, Report
from epmvg.data.negatives import NegativeSampler
from epmvg.distill.losses import GroundingLoss
from epmvg.models.cpu_training import speed_up_bf16_training
from epmvg.models.factory import create_model, init_from
from epmvg.models.grounder import Grounder
from epmvg.models.pretrained import load_pretrained
from epmvg.models.text_encoder import TextFeatureCache
from epmvg.models.visual_encoder import VisualEncoder
from epmvg.training.averaging import average_weights
from epmvg.training.data import make_loaders
from epmvg.training.errors import raise_on_all_processes
from epmvg.training.optimizer import StepCount, make_optimizer
from epmvg.training.processes import broadcast_weights
from epmvg.training.run import Run
from epmvg.training.teacher import distillation_targets, open_teacher


def prepare_run(
    recipe: Recipe, folder: Path, accelerator: accelerate.PartialState, report: Report, *, resume: bool = False
) -> Run:
    """Build model, teacher, loaders and optimizer.

    Raises:
        InputError: On all processes, whichever of them cannot build its part.
    """
    settings = recipe.train
    accelerate.utils.set_seed(settings.seed)  # all processes start from the same weights
    with raise_on_all_processes():
        if missing := missing_start(recipe.model.init_from, recipe.model.name, recipe.data.name):
            raise InputError(missing)
        model, new_parameters = _build_model(recipe.model)
        uses_negatives = _uses_negatives(recipe, model)
        model.set_grad_checkpointing(settings.gradient_checkpointing)
        model.to(accelerator.device)
        teacher = open_teacher(recipe, model)
        train_loader, val_loader, samples = make_loaders(recipe, model, accelerator, report, resume=resume)
        count = StepCount.of(len(train_loader), settings)
        targets = None if teacher is None else distillation_targets(recipe, teacher.to(accelerator.device))
    if not accelerator.is_main_process:
        accelerate.utils.set_seed(settings.seed + accelerator.process_index)  # so that dropout differs
    if accelerator.device.type == "cpu" and use_bf16(settings.precision, accelerator.device):
        speed_up_bf16_training(model.visual_encoder.backbone, model.text_encoder.bert)
    broadcast_weights(model, accelerator.num_processes)
    if accelerator.device.type == "cuda" and isinstance(model.visual_encoder, VisualEncoder):
        model.visual_encoder.to(memory_format=torch.channels_last)  # as its input is
    trained_teacher = None if teacher is None or teacher.frozen else teacher
    if trained_teacher is not None:
        broadcast_weights(trained_teacher, accelerator.num_processes)
    optimizer, scheduler = make_optimizer(model, settings, count, new_parameters, trained_teacher)
    return Run(
        recipe=recipe,
        folder=folder,
        model=model,
        teacher=targets,
        criterion=_build_criterion(recipe),
        train_loader=train_loader,
        val_loader=val_loader,
        optimizer=optimizer,
        scheduler=scheduler,
        accelerator=accelerator,
        count=count,
        trained_teacher=trained_teacher,
        report=report,
        text_cache=TextFeatureCache(model.text_encoder) if model.text_encoder.frozen else None,
        negatives=NegativeSampler(train_loader.samples) if uses_negatives else None,
        average=None if settings.ema_decay is None else average_weights(model, settings.ema_decay),
        samples=samples,
        teacher_fingerprint=teacher.fingerprint() if teacher is not None and teacher.frozen else None,
    )


def _build_model(settings: ModelSettings) -> tuple[Grounder, list[str]]:
    """Build the model; return it and the names of its parameters that were not loaded."""
    model = create_model(settings.name, **settings.overrides)
    loaded: set[str] = set()
    if settings.init_from is not None:
        loaded = init_from(model, settings.init_from)
    elif settings.pretrained:
        loaded = load_pretrained(model)
    return model, [name for name, _ in model.named_parameters() if name not in loaded]


def _uses_negatives(recipe: Recipe, model: Grounder) -> bool:
    if recipe.loss.match_weight and model.similarity is None:
        raise InputError(
            "loss.match_weight ranks similarities, which this student lacks. Set loss.match_weight=0 or "
            "model.similarity=true."
        )
    return bool(recipe.train.negatives_per_phrase and (model.iou_head is not None or recipe.loss.match_weight))


def _build_criterion(recipe: Recipe) -> GroundingLoss:
    weights = recipe.loss.model_dump()
    if recipe.distill is not None:
        weights |= recipe.distill.model_dump(include={"image_weight", "text_weight", "dense_weight"})
        weights["distill_loss"] = recipe.distill.loss
    return GroundingLoss(**weights)
