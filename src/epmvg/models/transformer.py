"""Transformer encoder of both the visual branch and the fusion, and the sine position code.

Post-norm, ReLU, positions added to queries and keys in every layer but never to values, as DETR and TransVG do;
parameter names are DETR's, so that published weights map one to one.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class Attention(nn.Module):
    """Multi-head self-attention with positions on queries and keys only."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, position: Tensor, hide: Tensor) -> Tensor:
        """Attend within x [B, T, D]; `hide` [B, 1, 1, T] is added to the scores, -inf at padding."""
        width = x.shape[-1]
        q, k = self._queries_and_keys(x, position)
        v = self._by_head(F.linear(x, self.in_proj_weight[2 * width :], self.in_proj_bias[2 * width :]))
        dropout = self.dropout if self.training else 0.0
        hide = hide.to(q.dtype)
        if q.device.type != "cpu" or not torch.is_grad_enabled() or (q.dtype != torch.bfloat16 and not dropout):
            mixed = F.scaled_dot_product_attention(q, k, v, hide, dropout)
        elif dropout:  # no fused kernel here: weights are computed again for the backward pass instead of kept
            mixed = checkpoint(_attend, q, k, v, hide, dropout, use_reentrant=False)
        else:  # three times faster than the fused kernel in bfloat16 at a few hundred tokens
            mixed = _attend(q, k, v, hide, dropout)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))  # [B, T, D]
        return out

    def first_row(self, x: Tensor, position: Tensor, hide: Tensor) -> Tensor:
        """Return what the first token attends to, [B, H, T]: shares of 1, the weights that `forward` never shows."""
        q, k = self._queries_and_keys(x, position)
        scores = (q[:, :, :1] * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + hide.to(q.dtype)  # [B, H, 1, T]
        shares: Tensor = scores[:, :, 0].float().softmax(-1)
        return shares

    def _queries_and_keys(self, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        width = x.shape[-1]
        both = F.linear(x + position, self.in_proj_weight[: 2 * width], self.in_proj_bias[: 2 * width])
        query, key = both.chunk(2, -1)  # [B, T, D] each
        return self._by_head(query), self._by_head(key)

    def _by_head(self, part: Tensor) -> Tensor:
        heads: Tensor = part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, T, d]
        return heads


def _attend(q: Tensor, k: Tensor, v: Tensor, hide: Tensor, dropout: float) -> Tensor:
    """Attention step by step, of q, k and v [B, H, T, d]."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + hide  # [B, H, T, T]
    return F.dropout(scores.softmax(-1, dtype=q.dtype), dropout) @ v


class EncoderLayer(nn.Module):
    """Self-attention, then a two-layer perceptron, each with dropout, residual and LayerNorm after it."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads, dropout)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor, hide: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(self.self_attn(x, position, hide)))
        hidden = self.dropout(F.relu(self.linear1(x), inplace=True))
        out: Tensor = self.norm2(x + self.dropout(self.linear2(hidden)))
        return out


class Encoder(nn.Module):
    """A stack of encoder layers; every matrix starts Xavier-uniform.

    Attributes:
        checkpointed: whether a training step keeps only each layer's input and computes the layer again in the
            backward pass (gradient checkpointing).
    """

    def __init__(self, layers: int, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(width, heads, hidden, dropout) for _ in range(layers))
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        self.checkpointed = False

    def forward(self, x: Tensor, position: Tensor, image_mask: Tensor) -> Tensor:
        """Encode x [B, T, D] with `position` (broadcast to x) and `pad` bool [B, T], True where there is nothing."""
        hide = _hide(image_mask, x)
        for layer in self.layers:
            if self.checkpointed and torch.is_grad_enabled():
                x = checkpoint(layer, x, position, hide, use_reentrant=False)
            else:
                x = layer(x, position, hide)
        return x

    def attention(self, x: Tensor, position: Tensor, image_mask: Tensor) -> Tensor:
        """Return what the first token attends to in the last layer, [B, T]: the mean of the heads, shares of 1."""
        hide = _hide(image_mask, x)
        for layer in self.layers[:-1]:
            x = layer(x, position, hide)
        return cast(EncoderLayer, self.layers[-1]).self_attn.first_row(x, position, hide).mean(1)


def _hide(image_mask: Tensor, x: Tensor) -> Tensor:
    """Scores to add, [B, 1, 1, T]: -inf where `pad` [B, T] says that there is nothing."""
    return torch.zeros(image_mask.shape, dtype=x.dtype, device=x.device).masked_fill(image_mask, -math.inf)[
        :, None, None
    ]


def sine_position(image_mask: Tensor, width: int, temperature: float = 10_000.0) -> Tensor:
    """Sine code of token places relative to the picture's content (DETR, sec. A.4).

    Args:
        pad: bool [B, H, W], True where there is nothing; a fully padded image yields a finite code too.
        width: channels, half for y and then half for x; a multiple of 4.

    Returns:
        float32 [B, H, W, width]; sine on even, cosine on odd channels.
    """
    content = ~image_mask
    y = content.cumsum(1, dtype=torch.float32)
    x = content.cumsum(2, dtype=torch.float32)
    y = y / (y[:, -1:, :] + 1e-6) * 2 * math.pi
    x = x / (x[:, :, -1:] + 1e-6) * 2 * math.pi
    half = width // 2
    channel = torch.arange(half, device=image_mask.device, dtype=torch.float32)
    period = temperature ** (2 * channel.div(2, rounding_mode="floor") / half)
    codes = []
    for place in (y, x):
        angle = place[..., None] / period  # [B, H, W, half]
        codes.append(torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1).flatten(-2))
    return torch.cat(codes, -1)


def content_first(image_mask: Tensor, multiple: int = 16) -> Tensor:
    """Indices [I, n] of each image's content tokens (and token 0), row by row, filled up with padding.

    An exported graph has no shapes that hang on pixels: there all tokens are kept, in order.
    """
    if torch.compiler.is_exporting():
        return torch.arange(image_mask.shape[1], device=image_mask.device).expand(image_mask.shape[0], -1)
    skip = image_mask.clone()
    skip[:, 0] = False
    count = int((~skip).sum(1).max())
    count = min(-(-count // multiple) * multiple, image_mask.shape[1])
    return skip.to(torch.uint8).argsort(dim=1, stable=True)[:, :count]


class MLP(nn.Module):
    """Linear layers with ReLU between them; the last has none (eq. 4)."""

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int = 3) -> None:
        super().__init__()
        widths = [inputs] + [hidden] * (layers - 1) + [outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        out: Tensor = self.layers[-1](x)
        return out
