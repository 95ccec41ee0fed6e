"""Dense head, beyond the paper: token-phrase similarity, a heatmap over visual tokens, and a box from each of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epmvg.core.boxes import to_cxcywh, to_xyxy


@dataclass(slots=True)
class TokenMaps:
    """What a student says of each of the n visual tokens that it carries; None where it has no such map."""

    where: Tensor | None  # [P, n] logits, -inf at padding
    token_boxes: Tensor | None  # [P, n, 4] cxcywh
    similarity: Tensor | None  # [P, n] logits, -inf at padding


class Similarity(nn.Module):
    """Cosine of each visual token with the mean word of a phrase, in a shared space."""

    def __init__(self, visual_width: int, text_width: int, width: int) -> None:
        super().__init__()
        self.visual = nn.Linear(visual_width, width)
        self.text = nn.Linear(text_width, width)
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))  # temperature 0.1, half of CLIP's 14 at its start
        self.token = nn.Parameter(torch.randn(width) * 0.1)  # logits are some tens at most

    def forward(self, visual: Tensor, states: Tensor, token_mask: Tensor, image_index: Tensor) -> Tensor:
        """Visual [I, n, C], states [P, L, C'] -> logits [P, n]."""
        weight = (~token_mask).to(states.dtype)[..., None]
        phrase = (states * weight).sum(1) / weight.sum(1)
        visual = F.normalize(self.visual(visual), dim=-1)
        phrase = F.normalize(self.text(phrase), dim=-1)
        every = visual @ phrase.T  # [I, n, P]: all pairs cost less than a copy of the image for each phrase
        cosine = every.permute(0, 2, 1)[
            image_index, torch.arange(image_index.shape[0], device=image_index.device)
        ]  # [P, n]
        return cosine * self.scale.clamp(max=math.log(100.0)).exp()

    def feed(self, similarity: Tensor) -> Tensor:
        """What a visual token learns of its similarity: [P, n] -> [P, n, D]."""
        return similarity[..., None] * self.token


def mean_vote(where: Tensor, token_boxes: Tensor) -> Tensor:
    """Average votes [P, n, 4] by the where-map's logits [P, n] -> [P, 4]: smooth, for training."""
    return (where.softmax(-1)[..., None] * token_boxes).sum(1)


def median_vote(where: Tensor, token_boxes: Tensor, sharpen: float = 1.25, middle: float = 0.2) -> Tensor:
    """Take each edge of the box from the middle of the votes for it -> [P, 4] cxcywh: deaf to a few far votes.

    Votes [P, n, 4] are sorted edge by edge and weighed by the where-map's logits [P, n] times `sharpen`; the `middle`
    share of that weight is averaged. A second candidate with a fifth of the map's mass would pull a mean far off, but
    hardly moves a median. Chosen on val (docs/results.md).
    """
    edges, order = to_xyxy(token_boxes).sort(1)  # [P, n, 4] each
    upto = (where * sharpen).softmax(-1)[..., None].expand_as(edges).gather(1, order).cumsum(1)
    since = torch.cat([torch.zeros_like(upto[:, :1]), upto[:, :-1]], 1)
    low, high = 0.5 - middle / 2, 0.5 + middle / 2
    weight = (upto.clamp(max=high) - since.clamp(min=low)).clamp(min=0)  # [P, n, 4]
    return to_cxcywh((weight * edges).sum(1) / weight.sum(1))


def share_inside(where: Tensor, box: Tensor, grid: tuple[int, int]) -> Tensor:
    """Share of where-maps (logits [P, N] on a grid of rows x columns) inside boxes [P, 4] cxcywh -> [P] in 0..1."""
    rows, columns = grid
    share = where.float().softmax(-1).unflatten(1, grid)  # [P, H, W]
    x0, y0, x1, y1 = (edge[:, None] for edge in to_xyxy(box.float()).unbind(-1))
    left = torch.arange(columns, device=share.device, dtype=torch.float32) / columns
    top = torch.arange(rows, device=share.device, dtype=torch.float32) / rows
    across = ((x1 - left).clamp(max=1 / columns) - (x0 - left).clamp(min=0)).clamp(min=0) * columns  # [P, W], 0..1
    down = ((y1 - top).clamp(max=1 / rows) - (y0 - top).clamp(min=0)).clamp(min=0) * rows  # [P, H], 0..1
    return torch.einsum("phw,ph,pw->p", share, down, across).clamp(0, 1)


def mean_of_content(tokens: Tensor, image_mask: Tensor) -> Tensor:
    """Average tokens [P, n, D] that are not padding -> [P, D]."""
    weight = (~image_mask).to(tokens.dtype)[..., None]
    return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)
