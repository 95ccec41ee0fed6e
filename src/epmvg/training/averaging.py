"""An exponential moving average of a model's weights."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """Return a moving average of a model's weights, to be updated after each optimizer step.

    The decay of update n is (1 + n) / (10 + n) at most, so that the random initial weights are soon forgotten.
    """

    def update(averages: Any, parameters: Any, updates: Any) -> None:
        count = int(updates)
        get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))(averages, parameters, updates)

    return AveragedModel(model, multi_avg_fn=update).eval()
