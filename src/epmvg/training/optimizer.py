"""Who learns how fast: groups of parameters, and the rate's course."""

from __future__ import annotations

import math
from typing import Any

from epmvg.config import TrainSettings
from epmvg.distill.losses import Regressor
from epmvg.distill.teacher import ClipTeacher
from epmvg.models.grounder import Grounder


def parameter_groups(
    student: Grounder,
    settings: TrainSettings,
    teacher: ClipTeacher | None = None,
    regressor: Regressor | None = None,
) -> list[dict[str, Any]]:
    """Split what trains into groups with learning rates of their own (sec. 4.2), by module.

    An unfrozen teacher trains along with the student at its own rate (Table 4), a regressor as what is not pretrained.
    """
    trained = student.visual.trained()
    backbone, encoder = ([p for m in trained[name] for p in m.parameters()] for name in ("backbone", "encoder"))
    text = list(student.linguistic.parameters())
    named = {id(p) for p in (*backbone, *encoder, *text)}
    rest = [p for p in student.parameters() if id(p) not in named]
    groups: list[dict[str, Any]] = [
        {"name": "backbone", "params": backbone, "lr": settings.lr_visual},
        {"name": "encoder", "params": encoder, "lr": settings.lr_encoder},
        {"name": "text", "params": text, "lr": settings.lr_text},
        {"name": "rest", "params": rest, "lr": settings.lr},
    ]
    if teacher is not None and not teacher.frozen:
        groups.append({"name": "teacher", "params": list(teacher.parameters()), "lr": settings.lr_teacher})
    if regressor is not None:
        groups.append({"name": "regressor", "params": list(regressor.parameters()), "lr": settings.lr})
    for group in groups:
        group["params"] = [p for p in group["params"] if p.requires_grad]
        group["peak_lr"] = group["lr"]
    return [group for group in groups if group["params"]]


def lr_factor(step: int, steps_per_epoch: int, settings: TrainSettings) -> float:
    """Return the share of the peak learning rate at an optimiser step."""
    total = max(1, round(settings.epochs * steps_per_epoch))
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    if settings.schedule == "cosine":
        done = (step - settings.warmup) / max(1, total - settings.warmup)
        return max(0.01, 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
    return float(0.1 ** math.floor(step / steps_per_epoch / settings.drop))
