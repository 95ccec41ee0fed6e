"""What a training works on, and what it has come to."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import accelerate
import torch
from torch import Tensor, nn

from epmvg.config import Recipe, TrainSettings
from epmvg.data.absent import Absence
from epmvg.data.loader import GroundingLoader
from epmvg.data.samples import Samples
from epmvg.data.shard_loader import ShardLoader
from epmvg.distill.lesson import Lesson
from epmvg.distill.losses import GroundingLoss, Loss
from epmvg.models.factory import build
from epmvg.models.grounder import Grounder
from epmvg.models.memory import TextMemory
from epmvg.training.spread import whole
from epmvg.training.stopping import StopRequest
from epmvg.types import Batch
from epmvg.writing import naming

Report = Callable[[dict[str, Any]], None]
"""Called with each row of metrics.jsonl as it is written."""


@dataclass(slots=True)
class Position:
    """How far a run has come: all that `--resume` needs beside tensors."""

    step: int = 0
    phrases: int = 0
    seconds: float = 0.0
    best: float = -1.0
    best_step: int = -1  # the step whose weights are kept
    scored: int = -1  # the step at which val was last asked


class Meter:
    """Running means over phrases since the last row of metrics."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.start = time.monotonic()
        self.images = self.phrases = 0
        self.terms: dict[str, float] = {}

    def add(self, loss: Loss, batch: Batch) -> None:
        self.images += len(batch.letterbox)
        self.phrases += len(batch.records)
        for name, term in [*loss.terms.items(), ("total", loss.total)]:
            self.terms[name] = self.terms.get(name, 0.0) + term.item() * len(batch.records)

    def state(self) -> dict[str, Any]:
        """Return what has been counted, so that a resumed run's next row is an unbroken one's."""
        return {"images": self.images, "phrases": self.phrases, "terms": dict(self.terms)}

    def load_state(self, state: dict[str, Any]) -> None:
        self.images, self.phrases, self.terms = state["images"], state["phrases"], dict(state["terms"])

    def take(self, accelerator: accelerate.Accelerator) -> dict[str, Any]:
        """Return means and rates since the last time, of all processes together."""
        seconds = time.monotonic() - self.start
        own = torch.tensor([self.images, self.phrases, *self.terms.values()], device=accelerator.device)
        images, phrases, *terms = cast(Tensor, accelerator.reduce(own, "sum")).tolist()
        row = {
            "loss": {name: round(value / phrases, 5) for name, value in zip(self.terms, terms, strict=True)},
            "images_per_s": round(images / seconds, 2),
            "phrases_per_s": round(phrases / seconds, 2),
        }
        self.clear()
        return row


@dataclass(slots=True)
class Run:
    """What the loop works on."""

    recipe: Recipe
    folder: Path
    student: Grounder
    lesson: Lesson | None
    loss_of: GroundingLoss
    loader: GroundingLoader | ShardLoader
    val: GroundingLoader
    optimizer: torch.optim.Optimizer
    accelerator: accelerate.Accelerator
    network: nn.Module  # the student as it is spread over the processes
    beside: dict[str, nn.Module]  # what trains beside the student and is dropped after it
    report: Report
    text_memory: TextMemory | None
    absence: Absence | None  # which phrases the score head may learn "nothing there" from
    board: Any = None  # a TensorBoard writer, if the recipe wants one
    samples: dict[str, Samples] = field(default_factory=dict)  # of the splits "train" and "val"
    teacher: str | None = None  # fingerprint of a frozen one
    stop: StopRequest = field(default_factory=StopRequest)
    activation_mb: float | None = None  # what the run's first forward pass left for its backward pass
    position: Position = field(default_factory=Position)
    meter: Meter = field(default_factory=Meter)
    lost: set[str] = field(default_factory=set)  # why pictures were left out, of those already told

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return round(self.recipe.train.epochs * steps_per_epoch(self.loader, self.recipe.train))

    def whole(self) -> Grounder:
        """Return a student that a process may ask without the others: itself, or a copy that puts its shards together.

        All processes must call this at once.
        """
        if not self.accelerator.is_fsdp2:
            return self.student
        with torch.random.fork_rng(devices=[]):
            copy = build(self.student.settings)
        copy.tokenizer = self.student.tokenizer
        copy.load_state_dict(whole(self.student.state_dict()))
        return copy.to(self.accelerator.device)


def steps_per_epoch(loader: GroundingLoader | ShardLoader, settings: TrainSettings) -> int:
    return max(1, len(loader) // settings.accumulate)


def write_row(run: Run, row: dict[str, Any]) -> None:
    """Append a row to metrics.jsonl and tell whoever listens."""
    if not run.accelerator.is_main_process:
        return
    position = run.position
    row = {"step": position.step, "phrases": position.phrases, "seconds": round(position.seconds, 2)} | row
    file = run.folder / "metrics.jsonl"
    with naming(file), file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(row) + "\n")
    if run.board is not None:
        values = row.get("loss", {}) | {k: v for k, v in row.items() if isinstance(v, float) and k != "seconds"}
        for name, value in values.items():
            run.board.add_scalar(f"{row['event']}/{name}", value, position.step)
        run.board.flush()
    run.report(row | {"steps": run.steps})
