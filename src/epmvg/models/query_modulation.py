"""QRNet's query-aware attention: a phrase writes the weights of small gates over a map's channels and places.

From "Shifting More Attention to Visual Backbone" (Ye et al., CVPR 2022), section 3.2.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

ChannelGate = Literal["as_published", "repaired"]

FACTORS = 30  # K: rank of the generated weights
REDUCTION = 16  # of the channel gate's hidden layer


class DynamicLinear(nn.Module):
    """A linear layer whose weight and bias a query writes: [W; b] = U(query) V with K factors.

    Args:
        query: width of the query vector.
        inputs, outputs: of the layer.
        std: of V's random start; 0, as published, starts with a layer that answers nothing.
    """

    def __init__(self, query: int, inputs: int, outputs: int, *, std: float = 0.0) -> None:
        super().__init__()
        self.decoder = nn.Linear(query, (inputs + 1) * FACTORS)
        self.V = nn.Parameter(torch.randn(FACTORS, outputs) * std)

    def forward(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Write the layer for queries [P, Q]: weight [P, inputs, outputs] and bias [P, outputs]."""
        written = self.decoder(query).unflatten(1, (-1, FACTORS)) @ self.V  # [P, inputs + 1, outputs]
        return written[:, :-1], written[:, -1]


class QueryGate(nn.Module):
    """Scale a map's channels, then its places, as a query asks (QD-ATT).

    The gates pool over the whole map, what lies under padding included: published QRNet answers a little differently
    when the same picture lies elsewhere on the canvas. With `pad` given to `forward`, only content is pooled.

    Args:
        query: width of the query vector.
        width: C, the map's channels.
        channel: how the channel gate starts. `as_published` sets V = 0 in both of its layers, after which the first
            one never gets a gradient (ReLU at 0) and the gate never sees the image; `repaired` starts the first
            layer's V at small random values.
    """

    def __init__(self, query: int, width: int, channel: ChannelGate = "repaired") -> None:
        super().__init__()
        hidden = width // REDUCTION
        self.squeeze = DynamicLinear(query, width, hidden, std=0.0 if channel == "as_published" else 0.02)
        self.excite = DynamicLinear(query, hidden, width)
        self.spatial = DynamicLinear(query, width, 1)

    def forward(self, maps: Tensor, query: Tensor, image_index: Tensor, image_mask: Tensor | None = None) -> Tensor:
        """Gate maps [I, H, W, C], one copy a phrase.

        Args:
            maps: float [I, H, W, C].
            query: float [P, Q].
            owner: int64 [P], the map of each phrase.
            pad: bool [I, H, W]: leave these places out of the pooling.

        Returns:
            float [P, H, W, C].
        """
        places = maps.flatten(1, 2)  # [I, H * W, C]
        if image_mask is None:
            mean, peak = places.mean(1), places.amax(1)
        else:
            content = (~image_mask).flatten(1)[..., None]  # [I, H * W, 1]
            mean = (places * content).sum(1) / content.sum(1).clamp(min=1)
            peak = places.masked_fill(~content, torch.finfo(places.dtype).min).amax(1)
        pooled = torch.stack([mean, peak], 1)[image_index]  # [P, 2, C]
        weight, bias = self.squeeze(query)
        hidden = torch.baddbmm(bias[:, None], pooled, weight).relu()  # [P, 2, C / 16]
        weight, bias = self.excite(query)
        channel = torch.baddbmm(bias[:, None], hidden, weight).sum(1).sigmoid()  # [P, C]
        weight, bias = self.spatial(query)
        gated = places[image_index] * channel[:, None]  # [P, H * W, C]
        spatial = torch.baddbmm(bias[:, None], gated, weight).sigmoid()  # [P, H * W, 1]
        return (gated * spatial).view(image_index.shape[0], *maps.shape[1:])
