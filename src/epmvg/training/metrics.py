"""Running means of the losses between two rows of metrics.jsonl."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from epmvg.core.distributed import gather
from epmvg.core.types import Batch
from epmvg.distill.losses import DISTILLATION, Losses

_COUNTS = ("images", "phrases", "weight", "distillation_weight")


class RunningMeans:
    """Loss terms averaged over phrases by their weights, and rates, since the last `compute`.

    Attributes:
        since: Seconds of training at the last `compute`.
    """

    def __init__(self) -> None:
        self.reset(0.0)

    def reset(self, since: float) -> None:
        self.since = since
        self.images = self.phrases = 0
        self.weight = self.distillation_weight = 0.0
        self.sums: dict[str, Tensor] = {}

    def update(self, losses: Losses, batch: Batch) -> None:
        """Add a batch; sums stay on their device, so that nothing waits for them."""
        self.images += len(batch.letterboxes)
        self.phrases += len(batch.samples)
        weight, distillation_weight = batch.weight, batch.distillation_weight
        self.weight += weight
        self.distillation_weight += distillation_weight
        for name, term in losses.terms.items():
            own = distillation_weight if name in DISTILLATION else weight
            self.sums[name] = self.sums.get(name, 0.0) + term.detach().float() * own

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next `compute` needs, as plain values."""
        sums = {name: value.item() for name, value in self.sums.items()}
        return {name: getattr(self, name) for name in ("since", *_COUNTS)} | {"sums": sums}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        for name in ("since", *_COUNTS):
            setattr(self, name, state[name])
        self.sums = {name: torch.tensor(value, device=device) for name, value in state["sums"].items()}

    def compute(self, seconds: float) -> dict[str, Any]:
        """Return means and rates over all processes, complete on the first one, and reset.

        Args:
            seconds: Of training so far.
        """
        elapsed = max(seconds - self.since, 1e-9)
        states = gather(self.state_dict())
        self.reset(seconds)
        images, phrases, weight, distillation_weight = (sum(state[name] for state in states) for name in _COUNTS)
        names = dict.fromkeys(name for state in states for name in state["sums"])
        sums = {name: sum(state["sums"].get(name, 0.0) for state in states) for name in names}
        weights = {name: distillation_weight if name in DISTILLATION else weight for name in sums}
        means = {name: value / weights[name] if weights[name] else 0.0 for name, value in sums.items()}
        if means:
            means["total"] = sum(means.values())
        return {
            "loss": {name: round(value, 5) for name, value in means.items()},
            "images_per_s": round(images / elapsed, 2),
            "phrases_per_s": round(phrases / elapsed, 2),
        }
