"""What a training works on, and what it has come to."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import accelerate
import torch
from torch import Tensor, nn

from epmvg.config.settings import Recipe
from epmvg.core.distributed import gathered
from epmvg.core.files import disk_errors
from epmvg.core.types import Batch
from epmvg.data.loader import GroundingLoader
from epmvg.data.negatives import NegativeSampler
from epmvg.data.samples import SampleDigest
from epmvg.distill.losses import GroundingLoss, Loss
from epmvg.distill.targets import Lesson
from epmvg.models.grounder import Grounder
from epmvg.models.text_cache import TextFeatureCache
from epmvg.training.optimizer import StepCount
from epmvg.training.stopping import StopRequest

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
    """Sums over phrases since the last row of metrics.

    Attributes:
        since: seconds of training at that row.
    """

    def __init__(self) -> None:
        self.clear(0.0)

    def clear(self, since: float) -> None:
        self.since = since
        self.images = self.phrases = 0
        self.terms: dict[str, Tensor] = {}

    def add(self, loss: Loss, batch: Batch) -> None:
        """Add a batch; its terms stay on their device, so that nothing waits for them."""
        self.images += len(batch.letterboxes)
        self.phrases += len(batch.samples)
        for name, term in [*loss.terms.items(), ("total", loss.total)]:
            summed = term.detach().float() * len(batch.samples)
            self.terms[name] = self.terms[name] + summed if name in self.terms else summed

    def state(self) -> dict[str, Any]:
        """Return what has been counted, so that a resumed run's next row is that of an uninterrupted one."""
        terms = {name: term.item() for name, term in self.terms.items()}
        return {"since": self.since, "images": self.images, "phrases": self.phrases, "terms": terms}

    def load_state(self, state: dict[str, Any], device: torch.device) -> None:
        self.since, self.images, self.phrases = state["since"], state["images"], state["phrases"]
        self.terms = {name: torch.tensor(value, device=device) for name, value in state["terms"].items()}

    def take(self, seconds: float) -> dict[str, Any]:
        """Return means and rates of all processes, the first one's being whole, and begin anew.

        Args:
            seconds: of training so far.
        """
        spent = max(seconds - self.since, 1e-9)
        everyone = gathered(self.state())
        self.clear(seconds)
        images, phrases = (sum(own[name] for own in everyone) for name in ("images", "phrases"))
        terms = {
            name: sum(own["terms"].get(name, 0.0) for own in everyone) for own in everyone for name in own["terms"]
        }
        return {
            "loss": {name: round(value / phrases, 5) for name, value in terms.items()},
            "images_per_s": round(images / spent, 2),
            "phrases_per_s": round(phrases / spent, 2),
        }


@dataclass(slots=True)
class Run:
    """What the loop works on."""

    recipe: Recipe
    folder: Path
    student: Grounder
    lesson: Lesson | None
    loss_of: GroundingLoss
    loader: GroundingLoader
    val: GroundingLoader
    optimizer: torch.optim.Optimizer
    accelerator: accelerate.PartialState
    count: StepCount
    new: list[str]  # parameters that were not loaded from pretrained weights
    beside: dict[str, nn.Module]  # what trains beside the student and is dropped after it
    report: Report
    text_memory: TextFeatureCache | None
    absence: NegativeSampler | None  # which phrases the score head may learn "nothing there" from
    samples: dict[str, SampleDigest] = field(default_factory=dict)  # of the splits "train" and "val"
    teacher: str | None = None  # fingerprint of a frozen one
    stop: StopRequest = field(default_factory=StopRequest)
    position: Position = field(default_factory=Position)
    meter: Meter = field(default_factory=Meter)
    lost: set[str] = field(default_factory=set)  # why pictures were left out, of those already told

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.count.total


def write_row(run: Run, row: dict[str, Any]) -> None:
    """Append a row to metrics.jsonl and tell whoever listens."""
    if not run.accelerator.is_main_process:
        return
    position = run.position
    row = {"step": position.step, "phrases": position.phrases, "seconds": round(position.seconds, 2)} | row
    file = run.folder / "metrics.jsonl"
    with disk_errors(file), file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(row) + "\n")
    run.report(row | {"steps": run.steps})
