"""Initialisations of the query gates."""

from __future__ import annotations

import torch

from epmvg.models.query_modulation import QueryGate


def test_only_normal_init_trains_the_first_layer_of_a_channel_gate() -> None:
    """The published start (V = 0 in both layers) never passes a gradient to the first layer."""
    for init, trains in (("zero_init", False), ("normal_init", True)):
        torch.manual_seed(0)
        gate = QueryGate(8, 128, init)  # type: ignore[arg-type]
        features, query, image_index = torch.randn(2, 4, 4, 128), torch.randn(3, 8), torch.tensor([0, 1, 1])
        optimizer = torch.optim.SGD(gate.parameters(), lr=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            gate(features, query, image_index).square().sum().backward()
            optimizer.step()
        gradient = gate.squeeze.V.grad
        assert gradient is not None and bool(gradient.abs().max() > 0) == trains
