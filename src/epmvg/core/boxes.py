"""Conversions and overlaps of boxes.

Outside the network boxes are (x0, y0, x1, y1) in pixels of the upright original image, inside they are (cx, cy, w, h)
in 0..1 of the network input; `geometry.Letterbox` alone converts between the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    Boxes = TypeVar("Boxes", Tensor, NDArray[np.float64])


def to_xyxy(box: Boxes) -> Boxes:
    """Convert boxes [..., 4], tensor or array, from (cx, cy, w, h) to (x0, y0, x1, y1)."""
    center, half = box[..., :2], box[..., 2:] / 2
    return _concatenate(center - half, center + half)


def to_cxcywh(box: Boxes) -> Boxes:
    """Convert boxes [..., 4], tensor or array, from (x0, y0, x1, y1) to (cx, cy, w, h)."""
    low, high = box[..., :2], box[..., 2:]
    return _concatenate((low + high) / 2, high - low)


def _concatenate(first: Boxes, second: Boxes) -> Boxes:
    if isinstance(first, np.ndarray):
        return np.concatenate([first, second], -1)
    import torch

    return torch.cat([first, second], -1)


def box_iou(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the IoU of each box of `first` [A, 4] with each of `second` [B, 4], xyxy -> [A, B]; 0 of empty boxes."""
    low, high = np.maximum(first[:, None, :2], second[:, :2]), np.minimum(first[:, None, 2:], second[:, 2:])
    shared = (high - low).clip(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(-1) for boxes in (first, second)]
    iou: NDArray[np.float64] = shared / np.maximum(areas[0][:, None] + areas[1] - shared, np.finfo(np.float64).tiny)
    return iou


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the IoU of each pair of xyxy boxes, both [..., 4]; it is 0 where both are empty."""
    import torch

    intersection = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)
