"""Boxes and the only geometry between an image and the canvas.

Outside the network boxes are (x0, y0, x1, y1) in pixels of the original image; inside they are (cx, cy, w, h) in
0..1 of the square canvas. `Letterbox` alone crosses that border.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torchvision.ops import box_convert


def to_xyxy(box: Tensor) -> Tensor:
    """[..., 4] (cx, cy, w, h) -> [..., 4] (x0, y0, x1, y1)."""
    return cast(Tensor, box_convert(box, "cxcywh", "xyxy"))


def to_cxcywh(box: Tensor) -> Tensor:
    """[..., 4] (x0, y0, x1, y1) -> [..., 4] (cx, cy, w, h)."""
    return cast(Tensor, box_convert(box, "xyxy", "cxcywh"))


def _areas(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Intersection, union and hull of paired xyxy boxes."""
    top_left, bottom_right = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - intersection
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    return intersection, union, hull


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of box i of `a` with box i of `b`, both [..., 4] xyxy; two empty boxes score 0."""
    intersection, union, _ = _areas(a, b)
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def paired_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of paired [..., 4] xyxy boxes, in -1..1 and finite even where both are empty."""
    intersection, union, hull = _areas(a, b)
    tiny = torch.finfo(union.dtype).tiny
    return intersection / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)


@dataclass(frozen=True, slots=True)
class Letterbox:
    """Where a source picture lies on a square canvas: canvas = source * scale + offset.

    `flip` mirrors the source left-right first. A crop is a source that starts at negative offsets.
    """

    width: float  # of the source, pixels
    height: float
    side: int  # S
    scale_x: float
    scale_y: float
    left: float  # canvas pixels
    top: float
    flip: bool = False

    @classmethod
    def fit(cls, width: int, height: int, side: int) -> Letterbox:
        """Scale the longer side to `side` and centre, as TransVG evaluates (its rounding of the offsets included)."""
        ratio = side / max(width, height)
        left = round((side - round(width * ratio)) / 2 - 0.1)
        top = round((side - round(height * ratio)) / 2 - 0.1)
        return cls(width, height, side, ratio, ratio, left, top)

    def to_canvas(self, box: Tensor) -> Tensor:
        """[..., 4] xyxy in source pixels -> [..., 4] cxcywh in 0..1 of the canvas (not clipped)."""
        x0, y0, x1, y1 = box.unbind(-1)
        if self.flip:
            x0, x1 = self.width - x1, self.width - x0
        canvas = torch.stack(
            [
                x0 * self.scale_x + self.left,
                y0 * self.scale_y + self.top,
                x1 * self.scale_x + self.left,
                y1 * self.scale_y + self.top,
            ],
            -1,
        )
        return to_cxcywh(canvas) / self.side

    def to_source(self, box: Tensor) -> Tensor:
        """[..., 4] cxcywh in 0..1 of the canvas -> [..., 4] xyxy in source pixels, clipped to the picture."""
        x0, y0, x1, y1 = (to_xyxy(box) * self.side).unbind(-1)
        x0, x1 = (x0 - self.left) / self.scale_x, (x1 - self.left) / self.scale_x
        y0, y1 = (y0 - self.top) / self.scale_y, (y1 - self.top) / self.scale_y
        if self.flip:
            x0, x1 = self.width - x1, self.width - x0
        return torch.stack(
            [x0.clamp(0, self.width), y0.clamp(0, self.height), x1.clamp(0, self.width), y1.clamp(0, self.height)], -1
        )
