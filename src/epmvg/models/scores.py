"""What a student thinks of its own boxes, before calibration."""

from __future__ import annotations

from torch import Tensor

from epmvg.core.types import GroundingOutput
from epmvg.models.dense_head import share_inside


def raw_scores(output: GroundingOutput) -> Tensor:
    """Return what a model thinks of each of its boxes, [P] in 0..1: the IoU that its score head expects.

    Without such a head it is the share of the where-map inside the box, without a map 1.
    """
    if output.iou_logits is not None:
        return output.iou_logits.sigmoid()
    if output.heatmap is not None and output.grid is not None:
        return share_inside(output.heatmap, output.box, output.grid)
    return output.box.new_ones(output.box.shape[0])
