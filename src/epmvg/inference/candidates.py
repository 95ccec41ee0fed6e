"""Several candidate boxes of a phrase, from the heatmap over visual tokens and the box that each token predicts.

A heatmap with several modes ("a man" in an image of three men) holds several candidates; the predicted box is the
first.
Tokens whose boxes agree with it are removed, and the heaviest group of agreeing tokens that remain is the next one:
non-maximum suppression over per-token boxes, each weighted by its probability in the heatmap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from epmvg.core.boxes import box_iou, to_cxcywh, to_xyxy

TEMPERATURE = 1.25
"""Factor of the heatmap's logits, as for the predicted box (`models.dense_head.median_box`)."""

TOKENS = 64
"""Number of tokens considered, the heaviest; the others hold a few thousandths of the mass."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Candidates:
    """The candidate boxes of one phrase, the predicted one first."""

    boxes: Floats  # [K, 4], xyxy in pixels of the upright image
    scores: Floats  # [K], falling


def candidate_boxes(
    heatmap: NDArray[np.floating],
    token_boxes: NDArray[np.floating],
    best: NDArray[np.floating],
    *,
    top_k: int,
    overlap: float = 0.5,
    least: float = 0.02,
) -> tuple[Floats, Floats]:
    """Return up to `top_k` boxes of one phrase, the predicted box first, and the probability mass of each.

    Args:
        heatmap: logits over visual tokens [N], -inf at padding.
        token_boxes: per-token boxes [N, 4], cxcywh.
        best: the predicted box [4], cxcywh in the same unit.
        top_k: most candidates.
        overlap: IoU from which a per-token box belongs to a candidate; no two candidates overlap more.
        least: least probability mass, 0..1, of a further candidate.

    Returns:
        boxes [K, 4], cxcywh, and masses [K] with 1 <= K <= `top_k`; after the first the masses fall.
    """
    order = np.argsort(heatmap, kind="stable")[::-1][:TOKENS]
    logits = np.asarray(heatmap, np.float64) * TEMPERATURE
    weight = np.exp(logits[order] - logits.max())
    weight /= np.exp(logits - logits.max()).sum()
    boxes = to_xyxy(np.asarray(token_boxes, np.float64)[order])
    agree = box_iou(boxes, boxes) >= overlap  # [n, n]
    kept = [to_xyxy(np.asarray(best, np.float64))]
    near = box_iou(boxes, kept[0][None])[:, 0] >= overlap
    masses = [float(weight[near].sum())]
    free = ~near
    while len(kept) < top_k and free.any():
        groups = np.where(free, agree @ (weight * free), -1.0)
        heaviest = int(groups.argmax())
        members = agree[heaviest] & free
        free &= ~members
        if groups[heaviest] < least:
            break
        box = (boxes[members] * weight[members, None]).sum(0) / weight[members].sum()
        if (box_iou(np.array(kept), box[None]) < overlap).all():
            kept.append(box)
            masses.append(float(groups[heaviest]))
    return to_cxcywh(np.array(kept)), np.array(masses)  # removing tokens only lowers the masses of the others


def median_boxes(logits: NDArray[np.floating], token_boxes: NDArray[np.floating], middle: float = 0.2) -> Floats:
    """Take each edge of P boxes from the middle of the token boxes' edges, as `models.dense_head.median_box` does.

    Args:
        logits: over visual tokens [P, N], already sharpened, -inf at padding.
        token_boxes: [P, N, 4], cxcywh.
        middle: fraction of the mass, around its half, whose edges are averaged.

    Returns:
        boxes [P, 4], cxcywh in the same unit.
    """
    mass = np.exp(np.asarray(logits, np.float64) - logits.max(1, keepdims=True))
    mass /= mass.sum(1, keepdims=True)
    edges = to_xyxy(np.asarray(token_boxes, np.float64))  # [P, N, 4]
    order = edges.argsort(1, kind="stable")
    edges = np.take_along_axis(edges, order, 1)
    upper = np.take_along_axis(np.broadcast_to(mass[..., None], edges.shape), order, 1).cumsum(1)
    lower = np.concatenate([np.zeros_like(upper[:, :1]), upper[:, :-1]], 1)
    weight = (np.minimum(upper, 0.5 + middle / 2) - np.maximum(lower, 0.5 - middle / 2)).clip(min=0)
    return to_cxcywh((weight * edges).sum(1) / weight.sum(1))


def candidate_confidences(confidence: float, masses: Floats) -> Floats:
    """Return a confidence for each candidate [K]: the given one for the first, then in proportion to their masses.

    None is above the one before it.
    """
    relative = np.minimum(masses / max(float(masses[0]), 1e-9), 1.0)
    return confidence * np.minimum.accumulate(np.concatenate([[1.0], relative[1:]]))
