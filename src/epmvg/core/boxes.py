"""Conversions and overlaps of boxes.

Outside the network boxes are (x0, y0, x1, y1) in pixels of the upright original image, inside they are (cx, cy, w, h)
in 0..1 of the network input; `geometry.Letterbox` alone converts between the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def to_xyxy(box: Tensor) -> Tensor:
    """Convert [..., 4] (cx, cy, w, h) to (x0, y0, x1, y1)."""
    import torch

    cx, cy, w, h = box.unbind(-1)
    return torch.stack([cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h], -1)


def to_cxcywh(box: Tensor) -> Tensor:
    """Convert [..., 4] (x0, y0, x1, y1) to (cx, cy, w, h)."""
    import torch

    x0, y0, x1, y1 = box.unbind(-1)
    return torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], -1)


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the IoU of each pair of xyxy boxes, both [..., 4]; it is 0 where both are empty."""
    import torch

    intersection = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)
