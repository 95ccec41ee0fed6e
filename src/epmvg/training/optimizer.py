"""Optimizer parameter groups, the number of optimizer steps, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from epmvg.config.settings import TrainSettings
from epmvg.core.types import InputError
from epmvg.models.grounder import Grounder


@dataclass(frozen=True, slots=True)
class StepCount:
    """Optimizer steps of a training.

    Attributes:
        per_epoch: steps of an epoch, the last of which may take fewer batches than the others.
        total: steps of the whole training.
        between_scores: steps from one score on val to the next.
    """

    per_epoch: int
    total: int
    between_scores: int

    @classmethod
    def of(cls, batches: int, settings: TrainSettings) -> StepCount:
        """Count the steps of a training whose epochs have so many batches, over all processes together."""
        per_epoch = -(-batches // settings.gradient_accumulation_steps)
        return cls(per_epoch, round(settings.epochs * per_epoch), max(1, round(settings.eval_interval * per_epoch)))

    def check(self, settings: TrainSettings) -> None:
        """Refuse settings that cannot be carried out in so few steps.

        Raises:
            InputError: there is no step at all, or the warm-up would not end before the training does.
        """
        if not self.total:
            raise InputError(
                f"train.epochs={settings.epochs:g} is no optimizer step, an epoch having {self.per_epoch}: raise it."
            )
        if settings.warmup_steps >= self.total:
            raise InputError(
                f"train.warmup_steps={settings.warmup_steps} would not end within the "
                f"{self.total} optimizer steps of this training: "
                f"set train.warmup_steps={self.total // 10} or raise train.epochs={settings.epochs:g}."
            )


def parameter_groups(
    student: Grounder,
    settings: TrainSettings,
    new: Collection[str] = (),
    beside: Mapping[str, nn.Module] | None = None,
) -> list[dict[str, Any]]:
    """Group what trains by learning rate (sec. 4.2).

    Pretrained parameters of backbone, visual encoder and text encoder have rates of their own; what is `new` (names of
    parameters that were not loaded) learns at `train.lr` wherever it is, like the fusion encoder and the box head.
    What trains `beside` the student, an unfrozen `teacher`, has its own rate (Table 4).
    """
    rates = {"backbone": settings.lr_backbone, "encoder": settings.lr_visual_encoder, "text": settings.lr_text_encoder}
    rates |= {"rest": settings.lr, "teacher": settings.lr_teacher}
    modules = student.visual_encoder.pretrained_modules() | {"text": [student.text_encoder]}
    group_of = {id(p): name for name, parts in modules.items() for part in parts for p in part.parameters()}
    held: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
    for name, parameter in student.named_parameters():
        held["rest" if name in new else group_of.get(id(parameter), "rest")].append(parameter)
    for name, module in (beside or {}).items():
        held[name] += module.parameters()
    groups = []
    for name, parameters in held.items():
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if trained:
            groups.append({"name": name, "params": trained, "lr": rates[name], "peak_lr": rates[name]})
    return groups


def make_optimizer(
    student: Grounder, settings: TrainSettings, new: Collection[str], beside: Mapping[str, nn.Module]
) -> torch.optim.Optimizer:
    """Make the optimizer of `parameter_groups`."""
    return torch.optim.AdamW(parameter_groups(student, settings, new, beside), weight_decay=settings.weight_decay)


def lr_factor(step: int, count: StepCount, settings: TrainSettings) -> float:
    """Return the learning rate of an optimizer step (from 0) as a fraction of its peak."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.lr_schedule == "cosine":
        done = (step - settings.warmup_steps) / max(1, count.total - settings.warmup_steps)
        return max(0.01, 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
    return float(0.1 ** math.floor(step / count.per_epoch / settings.lr_drop))
