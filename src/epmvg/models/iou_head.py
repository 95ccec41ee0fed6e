"""IoU head, beyond the paper: predicts the IoU of the student's own box."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from epmvg.core.boxes import paired_iou, to_xyxy
from epmvg.core.types import GroundingOutput
from epmvg.models.dense_head import TokenMaps, mean_of_content, share_inside
from epmvg.models.transformer import MLP


class ScoreHead(nn.Module):
    """Predict the IoU of the student's own box from what the student knows; no gradient passes into the student."""

    def __init__(self, width: int, *, maps: bool, similarity: bool) -> None:
        super().__init__()
        inputs = 2 * width + 4 + 10 * maps + 2 * similarity  # [REG], the pooled token and the facts of `score_evidence`
        self.layers = MLP(inputs, width, 1, layers=2)

    def forward(self, iou_features: Tensor) -> Tensor:
        """Evidence [P, F] -> logits [P] of the expected IoU."""
        logits: Tensor = self.layers(iou_features).squeeze(-1).float()
        return logits


@torch.no_grad()
def score_evidence(
    out: GroundingOutput, box: Tensor, reg: Tensor, fused: Tensor, visual_pad: Tensor, maps: TokenMaps
) -> Tensor:
    """Gather what tells a good box from a bad one: tokens, the box and how far the maps agree with it -> [P, F]."""
    facts = [box]  # [P, 4]
    if maps.where is not None and maps.token_boxes is not None:
        assert out.heatmap is not None and out.reg_box is not None and out.grid is not None
        share = maps.where.softmax(-1)  # [P, n]
        edges = to_xyxy(maps.token_boxes)  # [P, n, 4]
        corners = to_xyxy(box)
        entropy = -(share * share.clamp(min=1e-9).log()).sum(-1) / math.log(max(out.heatmap.shape[-1], 2))
        agreement = (share * paired_iou(edges, corners[:, None])).sum(-1)
        spread = (share[..., None] * (edges - corners[:, None]).abs()).sum(1)  # [P, 4]
        peak = maps.where.amax(-1) / 10  # of some tens at most
        other = paired_iou(to_xyxy(out.reg_box), corners)
        inside = share_inside(out.heatmap, box, out.grid)
        facts += [spread, torch.stack([entropy, agreement, share.amax(-1), peak, other, inside], -1)]
        pooled = torch.einsum("pn,pnd->pd", share.to(fused.dtype), fused)
    else:
        pooled = mean_of_content(fused, visual_pad)
    if maps.similarity is not None:
        cosine = maps.similarity / 10
        mean = cosine.masked_fill(visual_pad, 0.0).sum(-1) / (~visual_pad).sum(-1).clamp(min=1)
        facts.append(torch.stack([cosine.amax(-1), mean], -1))
    return torch.cat([reg.float(), pooled.float(), *(fact.float() for fact in facts)], -1)
