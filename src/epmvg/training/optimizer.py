"""Optimizer parameter groups, the number of optimizer steps, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from epmvg.config.settings import TrainSettings
from epmvg.core.types import InputError
from epmvg.models.grounder import Grounder

Scheduler = torch.optim.lr_scheduler.LambdaLR


@dataclass(frozen=True, slots=True)
class StepCount:
    """Optimizer steps of a training.

    Attributes:
        per_epoch: Steps of an epoch, the last of which may accumulate fewer batches than the others.
        total: Steps of the whole training.
        eval_interval: Steps from one validation to the next.
    """

    per_epoch: int
    total: int
    eval_interval: int

    @classmethod
    def of(cls, batches: int, settings: TrainSettings) -> StepCount:
        """Count the steps of a training with so many batches per epoch.

        Raises:
            InputError: There is no step at all, or the warm-up would not end before the training does.
        """
        per_epoch = -(-batches // settings.gradient_accumulation_steps)
        total = round(settings.epochs * per_epoch)
        if not total:
            raise InputError(
                f"train.epochs={settings.epochs:g} is less than one optimizer step, as an epoch has {per_epoch}. Raise "
                "it."
            )
        if settings.warmup_steps >= total:
            raise InputError(
                f"train.warmup_steps={settings.warmup_steps} would not end within the {total} optimizer steps of this "
                f"training. Set train.warmup_steps={total // 10} or raise train.epochs={settings.epochs:g}."
            )
        return cls(per_epoch, total, max(1, round(settings.eval_interval * per_epoch)))


def parameter_groups(
    model: Grounder,
    settings: TrainSettings,
    new: Collection[str] = (),
    teacher: nn.Module | None = None,
) -> list[dict[str, Any]]:
    """Group the trainable parameters by learning rate (sec. 4.2).

    Args:
        model: Pretrained parameters of its backbone, visual encoder and text encoder have learning rates of their own;
            the rest, and what is new, has `train.lr`.
        settings: The learning rates.
        new: Names of parameters that were not loaded.
        teacher: One that is not frozen (Table 4).
    """
    rates = {"backbone": settings.lr_backbone, "encoder": settings.lr_visual_encoder, "text": settings.lr_text_encoder}
    rates |= {"rest": settings.lr, "teacher": settings.lr_teacher}
    modules = model.visual_encoder.pretrained_modules() | {"text": [model.text_encoder]}
    group_of = {id(p): name for name, parts in modules.items() for part in parts for p in part.parameters()}
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
    for name, parameter in model.named_parameters():
        groups["rest" if name in new else group_of.get(id(parameter), "rest")].append(parameter)
    if teacher is not None:
        groups["teacher"] += teacher.parameters()
    trainable = {name: [p for p in parameters if p.requires_grad] for name, parameters in groups.items()}
    return [{"name": name, "params": params, "lr": rates[name]} for name, params in trainable.items() if params]


def make_optimizer(
    model: Grounder,
    settings: TrainSettings,
    count: StepCount,
    new: Collection[str],
    teacher: nn.Module | None,
) -> tuple[torch.optim.Optimizer, Scheduler]:
    """Make the optimizer of `parameter_groups` and its learning-rate scheduler, stepped once per optimizer step."""
    groups = parameter_groups(model, settings, new, teacher)
    has_fused = next(model.parameters()).device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True if has_fused else None)
    return optimizer, Scheduler(optimizer, lambda step: lr_factor(step, count, settings))


def lr_factor(step: int, count: StepCount, settings: TrainSettings) -> float:
    """Return the learning rate of an optimizer step (from 0) as a fraction of its peak."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.lr_schedule == "cosine":
        progress = (step - settings.warmup_steps) / max(1, count.total - settings.warmup_steps)
        return max(0.01, 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
    return float(0.1 ** math.floor(step / count.per_epoch / settings.lr_drop))
