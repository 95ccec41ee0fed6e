"""Boxes: conversions and overlaps.

Outside the network boxes are (x0, y0, x1, y1) in pixels of the original image; inside they are (cx, cy, w, h) in
0..1 of the square canvas. `geometry.Letterbox` alone crosses that border.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def to_xyxy(box: Tensor) -> Tensor:
    """[..., 4] (cx, cy, w, h) -> [..., 4] (x0, y0, x1, y1)."""
    import torch

    cx, cy, w, h = box.unbind(-1)
    return torch.stack([cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h], -1)


def to_cxcywh(box: Tensor) -> Tensor:
    """[..., 4] (x0, y0, x1, y1) -> [..., 4] (cx, cy, w, h)."""
    import torch

    x0, y0, x1, y1 = box.unbind(-1)
    return torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], -1)


def _areas(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Intersection, union and hull of paired xyxy boxes."""
    import torch

    top_left, bottom_right = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - intersection
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    return intersection, union, hull


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of box i of `a` with box i of `b`, both [..., 4] xyxy; two empty boxes score 0."""
    import torch

    intersection, union, _ = _areas(a, b)
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def paired_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of paired [..., 4] xyxy boxes, in -1..1 and finite even where both are empty."""
    import torch

    intersection, union, hull = _areas(a, b)
    tiny = torch.finfo(union.dtype).tiny
    return intersection / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)
