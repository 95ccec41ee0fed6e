"""Accuracy at a bound counts an overlap that reaches it exactly, as `PROTOCOL` says."""

from __future__ import annotations

import torch

from epmvg.evaluation import PROTOCOL, Scores


def test_an_overlap_of_exactly_the_bound_counts() -> None:
    below = torch.nextafter(torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64))
    scores = Scores.of(torch.stack([below, *torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)]))
    assert (scores.acc25, scores.acc50, scores.acc75) == (1.0, 0.5, 0.25)
    assert PROTOCOL.startswith("IoU >= 0.5")
