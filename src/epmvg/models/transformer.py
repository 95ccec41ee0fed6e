"""Transformer encoder of the visual encoder and of the fusion, sine positions, and the MLP of the heads.

Post-norm, ReLU, positions added to queries and keys of every layer but never to values, as in DETR and TransVG;
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
    """Multi-head self-attention with positions on queries and keys only.

    Parameters and values are those of `nn.MultiheadAttention`, which took 1.3 to 2 times as long in training and 3
    times as long in evaluation (bfloat16 on a CPU, 164 to 421 tokens; within 8 % in float32).
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, position: Tensor, mask: Tensor) -> Tensor:
        """Attend within x [B, T, D]; `mask` [B, 1, 1, T] is added to the scores, -inf at padding."""
        width = x.shape[-1]
        q, k = self._queries_and_keys(x, position)
        v = self._split_heads(F.linear(x, self.in_proj_weight[2 * width :], self.in_proj_bias[2 * width :]))
        dropout = self.dropout if self.training else 0.0
        mask = mask.to(q.dtype)
        if q.device.type != "cpu" or not torch.is_grad_enabled() or (q.dtype != torch.bfloat16 and not dropout):
            heads = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        elif dropout:  # no fused kernel: weights are computed again in the backward pass, which spares their memory
            heads = checkpoint(_attend, q, k, v, mask, dropout, use_reentrant=False)
        else:  # three times as fast as the fused kernel in bfloat16 at a few hundred tokens
            heads = _attend(q, k, v, mask, dropout)
        out: Tensor = self.out_proj(heads.transpose(1, 2).flatten(2))  # [B, T, D]
        return out

    def first_token_weights(self, x: Tensor, position: Tensor, mask: Tensor) -> Tensor:
        """Return the attention weights of the first token, [B, H, T], which the fused kernel does not return."""
        q, k = self._queries_and_keys(x, position)
        scores = (q[:, :, :1] * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + mask.to(q.dtype)  # [B, H, 1, T]
        weights: Tensor = scores[:, :, 0].float().softmax(-1)
        return weights

    def _queries_and_keys(self, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        width = x.shape[-1]
        both = F.linear(x + position, self.in_proj_weight[: 2 * width], self.in_proj_bias[: 2 * width])
        query, key = both.chunk(2, -1)  # [B, T, D] each
        return self._split_heads(query), self._split_heads(key)

    def _split_heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, T, d]
        return heads


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float) -> Tensor:
    """Attention without a fused kernel, of q, k and v [B, H, T, d]."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + mask  # [B, H, T, T]
    return F.dropout(scores.softmax(-1, dtype=q.dtype), dropout) @ v


class TransformerEncoderLayer(nn.Module):
    """Self-attention, then a two-layer perceptron, each with dropout, residual and LayerNorm after it."""

    def __init__(self, width: int, heads: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads, dropout)
        self.linear1 = nn.Linear(width, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(self.self_attn(x, position, mask)))
        hidden = self.dropout(F.relu(self.linear1(x), inplace=True))
        out: Tensor = self.norm2(x + self.dropout(self.linear2(hidden)))
        return out


class TransformerEncoder(nn.Module):
    """A stack of encoder layers; every matrix is initialized Xavier-uniform.

    Attributes:
        grad_checkpointing: keep only each layer's input in training, and compute the layer again in the backward pass.
    """

    def __init__(self, layers: int, width: int, heads: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerEncoderLayer(width, heads, dim_feedforward, dropout) for _ in range(layers)
        )
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        self.grad_checkpointing = False

    def forward(self, x: Tensor, position: Tensor, padding_mask: Tensor) -> Tensor:
        """Encode x [B, T, D] with `position` (broadcast to x) and `padding_mask` bool [B, T], True at padding."""
        mask = _additive_mask(padding_mask, x)
        for layer in self.layers:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, position, mask, use_reentrant=False)
            else:
                x = layer(x, position, mask)
        return x

    def first_token_weights(self, x: Tensor, position: Tensor, padding_mask: Tensor) -> Tensor:
        """Return the attention weights of the first token in the last layer, [B, T], averaged over the heads."""
        mask = _additive_mask(padding_mask, x)
        for layer in self.layers[:-1]:
            x = layer(x, position, mask)
        last = cast(TransformerEncoderLayer, self.layers[-1])
        return last.self_attn.first_token_weights(x, position, mask).mean(1)


def _additive_mask(padding_mask: Tensor, x: Tensor) -> Tensor:
    """Return what is added to attention scores, [B, 1, 1, T]: -inf where `padding_mask` [B, T] is True."""
    mask = torch.zeros(padding_mask.shape, dtype=x.dtype, device=x.device)
    return mask.masked_fill(padding_mask, -math.inf)[:, None, None]


def sine_position(mask: Tensor, width: int, temperature: float = 10_000.0) -> Tensor:
    """Compute sine positions of tokens relative to the unpadded part of the image (DETR, sec. A.4).

    Args:
        mask: bool [B, H, W], True at padding; a fully padded image yields finite positions too.
        width: channels, half for y and then half for x; a multiple of 4.
        temperature: of the frequencies.

    Returns:
        float32 [B, H, W, width]; sine on even, cosine on odd channels.
    """
    valid = ~mask
    y = valid.cumsum(1, dtype=torch.float32)
    x = valid.cumsum(2, dtype=torch.float32)
    y = y / (y[:, -1:, :] + 1e-6) * 2 * math.pi
    x = x / (x[:, :, -1:] + 1e-6) * 2 * math.pi
    half = width // 2
    channel = torch.arange(half, device=mask.device, dtype=torch.float32)
    period = temperature ** (2 * channel.div(2, rounding_mode="floor") / half)
    parts = []
    for coordinate in (y, x):
        angle = coordinate[..., None] / period  # [B, H, W, half]
        parts.append(torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1).flatten(-2))
    return torch.cat(parts, -1)


def count_unpadded(mask: Tensor) -> int:
    """Return the largest number of unpadded tokens of an image, token 0 included, in a mask [I, N]."""
    return int((~mask[:, 1:]).sum(1).max()) + 1


def unpadded_indices(mask: Tensor, count: int | None = None, multiple: int = 16) -> Tensor:
    """Return the indices [I, n] of each image's unpadded tokens and of token 0 in a mask [I, N], in order.

    n is `count_unpadded`, for which a GPU is waited for where no `count` is given, rounded up to `multiple`; rows with
    fewer are filled up with padding. An exported graph keeps all N tokens, since its shapes cannot depend on pixels.
    """
    if torch.compiler.is_exporting():
        return torch.arange(mask.shape[1], device=mask.device).expand(mask.shape[0], -1)
    skipped = mask.clone()
    skipped[:, 0] = False
    count = count_unpadded(mask) if count is None else count
    count = min(-(-count // multiple) * multiple, mask.shape[1])
    return skipped.to(torch.uint8).argsort(dim=1, stable=True)[:, :count]


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Gather tokens [I, N, C] at index [I, n] -> [I, n, C]."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def mean_unpadded(tokens: Tensor, mask: Tensor) -> Tensor:
    """Average the unpadded ones of tokens [P, n, D] -> [P, D]."""
    weight = (~mask).to(tokens.dtype)[..., None]
    return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)


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
