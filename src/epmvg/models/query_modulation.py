"""QRNet's query-aware attention: a phrase generates the weights of gates over a feature map's channels and tokens.

From "Shifting More Attention to Visual Backbone" (Ye et al., CVPR 2022), section 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from epmvg.models.presets import Gates

FACTORS = 30  # K: rank of the generated weights
REDUCTION = 16  # of the channel gate's hidden layer


class DynamicLinear(nn.Module):
    """A linear layer whose weight and bias are generated from a query: [W; b] = U(query) V with K factors.

    Args:
        query: width of the query vector.
        inputs, outputs: of the layer.
        std: of V's random initialization; 0, as published, starts with outputs of 0.
    """

    def __init__(self, query: int, inputs: int, outputs: int, *, std: float = 0.0) -> None:
        super().__init__()
        self.decoder = nn.Linear(query, (inputs + 1) * FACTORS)
        self.V = nn.Parameter(torch.randn(FACTORS, outputs) * std)

    def forward(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Generate the layer for queries [P, Q]: weight [P, inputs, outputs] and bias [P, outputs]."""
        generated = self.decoder(query).unflatten(1, (-1, FACTORS)) @ self.V  # [P, inputs + 1, outputs]
        return generated[:, :-1], generated[:, -1]


class QueryGate(nn.Module):
    """Scale a feature map's channels, then its tokens, depending on a query (QD-ATT).

    As published, the channel gate pools over the whole map, padding included: the output depends a little on where the
    image lies in the padded input.

    Args:
        query: width of the query vector.
        width: C, the feature map's channels.
        init: `zero_init`, as published, sets V = 0 in both layers of the channel gate, so that the first one never
            gets a gradient (ReLU at 0) and the gate never depends on the image; `normal_init` draws the first layer's
            V at a small standard deviation.
    """

    def __init__(self, query: int, width: int, init: Gates = "normal_init") -> None:
        super().__init__()
        hidden = width // REDUCTION
        self.squeeze = DynamicLinear(query, width, hidden, std=0.0 if init == "zero_init" else 0.02)
        self.excite = DynamicLinear(query, hidden, width)
        self.spatial = DynamicLinear(query, width, 1)

    def forward(self, features: Tensor, query: Tensor, image_index: Tensor) -> Tensor:
        """Gate features [I, H, W, C] for queries [P, Q] of images `image_index` [P] -> [P, H, W, C]."""
        tokens = features.flatten(1, 2)  # [I, H * W, C]
        pooled = torch.stack([tokens.mean(1), tokens.amax(1)], 1)[image_index]  # [P, 2, C]
        weight, bias = self.squeeze(query)
        hidden = torch.baddbmm(bias[:, None], pooled, weight).relu()  # [P, 2, C / 16]
        weight, bias = self.excite(query)
        channel = torch.baddbmm(bias[:, None], hidden, weight).sum(1).sigmoid()  # [P, C]
        weight, bias = self.spatial(query)
        gated = tokens[image_index] * channel[:, None]  # [P, H * W, C]
        spatial = torch.baddbmm(bias[:, None], gated, weight).sigmoid()  # [P, H * W, 1]
        return (gated * spatial).view(image_index.shape[0], *features.shape[1:])
