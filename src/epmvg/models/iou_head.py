"""IoU head, beyond the paper: the expected IoU of the predicted box, and the raw confidence that follows from it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from epmvg.core.boxes import paired_iou, to_xyxy
from epmvg.core.types import GroundingOutput
from epmvg.models.dense_head import mass_inside
from epmvg.models.transformer import MLP

DENSE_FEATURES = {
    "edge_distance": 4,
    "entropy": 1,
    "mean_iou": 1,
    "largest_weight": 1,
    "largest_logit": 1,
    "reg_box_iou": 1,
    "mass_inside": 1,
}
"""How far the dense head's outputs agree with the box: names and widths, in the order of the input."""

SIMILARITY_FEATURES = 3
"""The largest, the log-sum-exp (what `match_loss` trains) and the mean similarity of visual tokens with the phrase."""

_LOGIT_SCALE = 10  # logits are some tens at most


class IouHead(MLP):
    """Predict the IoU of the predicted box from features that carry no gradient into the other parts."""

    def __init__(self, width: int, *, dense_head: bool, similarity: bool) -> None:
        inputs = 2 * width + 4  # [REG], the pooled visual token, and the box
        inputs += sum(DENSE_FEATURES.values()) * dense_head + SIMILARITY_FEATURES * similarity
        super().__init__(inputs, width, 1, layers=2)

    def forward(self, features: Tensor) -> Tensor:
        """Compute logits [P] of the expected IoU from features [P, F]."""
        return super().forward(features).squeeze(-1).float()


@torch.no_grad()
def iou_features(output: GroundingOutput, reg: Tensor, pooled: Tensor) -> Tensor:
    """Gather the IoU head's input [P, F].

    Args:
        output: with `iou_box`, and the dense head's outputs where the model has one.
        reg: float [P, D], fused [REG].
        pooled: float [P, D], the mean fused visual token.
    """
    assert output.iou_box is not None
    features = [reg, pooled, output.iou_box]
    if output.heatmap is not None:
        dense = _dense_features(output, output.heatmap, output.iou_box)
        features += [dense[name].reshape(-1, width) for name, width in DENSE_FEATURES.items()]
    if output.similarity is not None:
        padding = output.similarity.isinf()
        cosine = output.similarity / _LOGIT_SCALE
        features += [
            cosine.amax(-1, keepdim=True),
            output.similarity.logsumexp(-1, keepdim=True) / _LOGIT_SCALE,
            cosine.masked_fill(padding, 0.0).sum(-1, keepdim=True) / (~padding).sum(-1, keepdim=True).clamp(min=1),
        ]
    return torch.cat([feature.float() for feature in features], -1)


def _dense_features(output: GroundingOutput, heatmap: Tensor, box: Tensor) -> dict[str, Tensor]:
    """Compute `DENSE_FEATURES` of heatmaps [P, N] and boxes [P, 4]."""
    assert output.token_boxes is not None and output.reg_box is not None and output.grid is not None
    weight = heatmap.softmax(-1)  # [P, N]
    token_boxes = to_xyxy(output.token_boxes)  # [P, N, 4]
    edges = to_xyxy(box)[:, None]  # [P, 1, 4]
    return {
        "edge_distance": (weight[..., None] * (token_boxes - edges).abs()).sum(1),
        "entropy": -(weight * weight.clamp(min=1e-9).log()).sum(-1) / math.log(max(heatmap.shape[-1], 2)),
        "mean_iou": (weight * paired_iou(token_boxes, edges)).sum(-1),
        "largest_weight": weight.amax(-1),
        "largest_logit": heatmap.amax(-1) / _LOGIT_SCALE,
        "reg_box_iou": paired_iou(to_xyxy(output.reg_box), edges[:, 0]),
        "mass_inside": mass_inside(heatmap, box, output.grid),
    }


def raw_confidence(output: GroundingOutput) -> Tensor:
    """Return the confidence in each box before calibration, [P] in 0..1: the IoU that the IoU head expects.

    Without such a head it is the heatmap's mass inside the box, and 1 without a heatmap.
    """
    if output.iou_logits is not None:
        return output.iou_logits.sigmoid()
    if output.heatmap is not None and output.grid is not None:
        return mass_inside(output.heatmap, output.box, output.grid)
    return output.box.new_ones(output.box.shape[0])
