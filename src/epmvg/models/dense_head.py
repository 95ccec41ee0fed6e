"""Dense head, beyond the paper: token-phrase similarity, a heatmap over visual tokens, and a box from each of them."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epmvg.core.boxes import to_cxcywh, to_xyxy
from epmvg.models.transformer import MLP


class TokenPhraseSimilarity(nn.Module):
    """Cosine of each visual token with a phrase's mean text token, in a shared space."""

    def __init__(self, visual_width: int, text_width: int, width: int) -> None:
        super().__init__()
        self.visual_proj = nn.Linear(visual_width, width)
        self.text_proj = nn.Linear(text_width, width)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.embed = nn.Parameter(torch.randn(width) * 0.1)  # logits are some tens at most

    def forward(self, visual: Tensor, text: Tensor, token_mask: Tensor, image_index: Tensor) -> Tensor:
        """Compute similarity logits [P, n] of visual tokens [I, n, C] and text tokens [P, L, C']."""
        valid = (~token_mask).to(text.dtype)[..., None]
        phrase = (text * valid).sum(1) / valid.sum(1)
        visual = F.normalize(self.visual_proj(visual), dim=-1)
        phrase = F.normalize(self.text_proj(phrase), dim=-1)
        pairs = visual @ phrase.T  # [I, n, P]: all pairs cost less than a copy of the image for each phrase
        own = torch.arange(image_index.shape[0], device=image_index.device)
        cosine = pairs.permute(0, 2, 1)[image_index, own]  # [P, n]
        return cosine * self.logit_scale.clamp(max=math.log(100.0)).exp()

    def embed_logits(self, similarity: Tensor) -> Tensor:
        """Return what is added to visual tokens for their similarity [P, n] -> [P, n, D]."""
        return similarity[..., None] * self.embed


class DenseHead(nn.Module):
    """Predict a heatmap over visual tokens and a box from each of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heatmap_head = nn.Linear(width, 1)
        self.token_box_head = MLP(width, width, 4)
        last = cast(nn.Linear, self.token_box_head.layers[-1])
        nn.init.normal_(last.weight, std=0.01)  # boxes start at their token's center
        nn.init.zeros_(last.bias)

    def forward(
        self, fused: Tensor, reg: Tensor, centers: Tensor, mask: Tensor, similarity: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Predict from fused visual tokens.

        Args:
            fused: float [P, n, D].
            reg: float [P, D], fused [REG].
            centers: float [P, n, 2], (x, y) of each token in 0..1 of the input.
            mask: bool [P, n], True at padding.
            similarity: logits [P, n] that are added to the heatmap.

        Returns:
            heatmap: logits [P, n], -inf at padding; and token boxes [P, n, 4], cxcywh in 0..1 of the input.
        """
        heatmap = self.heatmap_head(fused).squeeze(-1).float()
        if similarity is not None:
            heatmap = heatmap + similarity
        offset = self.token_box_head(fused + reg[:, None]).float()
        token_boxes = torch.cat([centers + offset[..., :2], offset[..., 2:].sigmoid()], -1)
        return heatmap.masked_fill(mask, -math.inf), token_boxes


def mean_box(heatmap: Tensor, token_boxes: Tensor) -> Tensor:
    """Average token boxes [P, n, 4] by the heatmap's logits [P, n] -> [P, 4]: smooth, for training."""
    return (heatmap.softmax(-1)[..., None] * token_boxes).sum(1)


def median_box(heatmap: Tensor, token_boxes: Tensor, sharpening: float = 1.25, middle: float = 0.2) -> Tensor:
    """Take each edge of the box from the middle of the token boxes' edges -> [P, 4] cxcywh, robust to outliers.

    Edges of token boxes [P, n, 4] are sorted one by one and weighted by the heatmap's logits [P, n] times
    `sharpening`; the `middle` fraction of that weight is averaged. A second candidate with a fifth of the heatmap's
    mass would move a mean far, but hardly moves a median. Chosen on val (docs/results.md).
    """
    edges, order = to_xyxy(token_boxes).sort(1)  # [P, n, 4] each
    upper = (heatmap * sharpening).softmax(-1)[..., None].expand_as(edges).gather(1, order).cumsum(1)
    lower = torch.cat([torch.zeros_like(upper[:, :1]), upper[:, :-1]], 1)
    low, high = 0.5 - middle / 2, 0.5 + middle / 2
    weight = (upper.clamp(max=high) - lower.clamp(min=low)).clamp(min=0)  # [P, n, 4]
    return to_cxcywh((weight * edges).sum(1) / weight.sum(1))


def mass_inside(heatmap: Tensor, box: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the fraction [P] of heatmaps (logits [P, N] on a grid of rows x columns) inside boxes [P, 4] cxcywh."""
    rows, columns = grid
    mass = heatmap.float().softmax(-1).unflatten(1, grid)  # [P, H, W]
    x0, y0, x1, y1 = (edge[:, None] for edge in to_xyxy(box.float()).unbind(-1))
    left = torch.arange(columns, device=mass.device, dtype=torch.float32) / columns
    top = torch.arange(rows, device=mass.device, dtype=torch.float32) / rows
    across = ((x1 - left).clamp(max=1 / columns) - (x0 - left).clamp(min=0)).clamp(min=0) * columns  # [P, W], 0..1
    down = ((y1 - top).clamp(max=1 / rows) - (y0 - top).clamp(min=0)).clamp(min=0) * rows  # [P, H], 0..1
    return torch.einsum("phw,ph,pw->p", mass, down, across).clamp(0, 1)
