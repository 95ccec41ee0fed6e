"""Small trainings that tests of this folder share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from epmvg.config.settings import Recipe
from epmvg.core.types import Batch
from epmvg.distill.losses import Losses
from epmvg.training.errors import check_finite
from epmvg.training.run import Run

TINY = [
    "model=tiny-resnet",
    "model.pretrained=false",
    "model.dense_head=true",
    "model.similarity=true",
    "data.batch_size=6",
    "data.phrases_per_image=2",
    "train.epochs=3",
    "train.lr=1e-3",
    "train.lr_backbone=1e-3",
    "train.save_interval=2",
    "train.log_interval=1",
    "train.eval_interval=1",
    "train.warmup_steps=0",
]


class KilledError(Exception):
    pass


def recipe(data: Path | str, *settings: str) -> Recipe:
    return Recipe.load("scenes", f"data.name={data}", "train.cache_features=false", "distill=null", *TINY, *settings)


def checkpoint(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(folder / "checkpoint" / "last.pt", weights_only=True)
    return loaded


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in checkpoint(folder)["model"].items() if tensor.is_floating_point()}


def same_weights(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def before_each_backward(act: Callable[[Run, Batch], object]) -> Callable[[Run, Batch, Losses], None]:
    """Return a stand-in for `loop.check_finite` that acts first."""

    def check(run: Run, batch: Batch, losses: Losses) -> None:
        act(run, batch)
        check_finite(run, batch, losses)

    return check


def killed_at(step: int) -> Callable[[Run, Batch, Losses], None]:
    """Return a stand-in for `loop.check_finite` that fails in a step, counted from 0."""

    def kill(run: Run, batch: Batch) -> None:
        if run.state.step == step:
            raise KilledError

    return before_each_backward(kill)
