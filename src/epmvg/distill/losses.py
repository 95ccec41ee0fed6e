"""What a student is trained on: box terms, the where-map's terms and the teacher's terms (eq. 5-8)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from epmvg.core.boxes import paired_giou, paired_iou, to_xyxy
from epmvg.core.types import GroundingOutput, InputError, SimilarityMap, TeacherEmbeddings

BoxLoss = Literal["l1", "smooth_l1"]
Distance = Literal["cosine", "l1"]


@dataclass(slots=True)
class Loss:
    """Named terms, already weighted; `total` is their sum."""

    terms: dict[str, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        return torch.stack(list(self.terms.values())).sum()


class GroundingLoss:
    """Score a student's answer against target boxes and, if there is one, a teacher's answer (eq. 8).

    Args:
        box: "smooth_l1" (eq. 8) or "l1" (TransVG), summed over the four coordinates, averaged over phrases.
        box_weight: of that term.
        giou: lambda of eq. 8; 0 leaves the term out (Table 7).
        image, text: alpha and beta of eq. 7; 0 leaves the side out (Table 3).
        dense: of the teacher's similarity map, which the student's follows.
        distance: between student and teacher vectors, as for `distillation_loss`.
        where, similarity: of the two maps' terms, for students that have them.
        votes: of the boxes that tokens inside the target vote for; they share the box terms.
        regressed: of the box from [REG] where the student also has an anchored one; both share the box terms.
        score: of the score head's term, for students that have one.
    """

    def __init__(
        self,
        *,
        box: BoxLoss = "smooth_l1",
        box_weight: float = 1.0,
        giou_weight: float = 1.0,
        image_weight: float = 1.5,
        text_weight: float = 2.0,
        dense_weight: float = 0.0,
        distill_loss: Distance = "cosine",
        heatmap_weight: float = 1.0,
        similarity_weight: float = 0.5,
        reg_box_weight: float = 0.5,
        token_box_weight: float = 1.0,
        iou_head_weight: float = 1.0,
    ) -> None:
        self.kind: BoxLoss = box
        self.box_weight, self.giou_weight = box_weight, giou_weight
        self.image_weight, self.text_weight, self.dense_weight = image_weight, text_weight, dense_weight
        self.distill_loss: Distance = distill_loss
        self.heatmap_weight, self.similarity_weight = heatmap_weight, similarity_weight
        self.reg_box_weight, self.token_box_weight = reg_box_weight, token_box_weight
        self.iou_head_weight = iou_head_weight

    def __call__(self, output: GroundingOutput, box: Tensor, teacher: TeacherEmbeddings | None = None) -> Loss:
        """Return the weighted terms for target boxes [P, 4] (cxcywh, 0..1 of the canvas).

        Raises:
            InputError: the student's answer lacks what the teacher is to be compared with.
        """
        loss = Loss()  # its terms add up (eq. 8)
        self._add_box(loss, "", output.box, box, 1.0)
        if output.reg_box is not None:
            self._add_box(loss, "reg_box_", output.reg_box, box, self.reg_box_weight)
        if output.token_boxes is not None and output.grid is not None and self.token_box_weight:
            inside = tokens_inside(box, output.grid)
            if output.heatmap is not None:
                inside &= output.heatmap.isfinite()
            phrase, token = inside.nonzero(as_tuple=True)
            weight = torch.bincount(phrase, minlength=len(box)).reciprocal()[phrase]
            self._add_box(
                loss, "token_box_", output.token_boxes[phrase, token], box[phrase], self.token_box_weight, weight
            )
        if output.grid is not None:
            for name, share in (("heatmap", self.heatmap_weight), ("similarity", self.similarity_weight)):
                logits: Tensor | None = getattr(output, name)
                if logits is not None:
                    loss.terms[name] = share * heatmap_loss(logits, box, output.grid)
        if teacher is not None:
            self._add_vectors(loss, output, teacher)
            if self.dense_weight and teacher.similarity is not None:
                loss.terms["dense"] = self.dense_weight * dense_loss(output, teacher.similarity)
        if output.iou_logits is not None and output.iou_box is not None:
            loss.terms["iou_head"] = self.iou_head_weight * iou_head_loss(
                output.iou_logits, output.iou_box, box, output.negative_iou_logits
            )
        return loss

    def _add_vectors(self, loss: Loss, output: GroundingOutput, teacher: TeacherEmbeddings) -> None:
        if teacher.image is not None and self.image_weight:
            image = distillation_loss(output.visual, teacher.image[output.image_index], self.distill_loss)
            loss.terms["image"] = self.image_weight * image  # alpha (eq. 7)
        if teacher.text is not None and self.text_weight:
            text = distillation_loss(output.text, teacher.text, self.distill_loss)
            loss.terms["text"] = self.text_weight * text  # beta (eq. 7)

    def _add_box(
        self, loss: Loss, prefix: str, predicted: Tensor, target: Tensor, scale: float, weight: Tensor | None = None
    ) -> None:
        if self.box_weight:
            loss.terms[prefix + self.kind] = scale * self.box_weight * box_loss(predicted, target, self.kind, weight)
        if self.giou_weight:
            loss.terms[prefix + "giou"] = scale * self.giou_weight * giou_loss(predicted, target, weight)


def box_loss(predicted: Tensor, target: Tensor, kind: BoxLoss, weight: Tensor | None = None) -> Tensor:
    """L1 or smooth L1 of [P, 4] boxes, summed over coordinates, averaged over phrases (TransVG's reduction).

    `weight` [P] makes that a weighted mean.
    """
    between = F.l1_loss if kind == "l1" else F.smooth_l1_loss
    return _mean(between(predicted, target, reduction="none").sum(-1), weight)


def giou_loss(predicted: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of 1 - GIoU over paired [P, 4] cxcywh boxes, weighted by [P] if given."""
    return _mean(1 - paired_giou(to_xyxy(predicted), to_xyxy(target)), weight)


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return values.mean()
    return (values * weight).sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)  # no rows: 0


def heatmap_loss(logits: Tensor, box: Tensor, grid: tuple[int, int]) -> Tensor:
    """Cross-entropy of a map over visual tokens with the tokens inside the target box.

    Args:
        logits: [P, N], -inf at padding.
        box: [P, 4] targets, cxcywh in 0..1 of the canvas.
        grid: (rows, columns) of the N tokens.
    """
    inside = tokens_inside(box, grid) & logits.isfinite()  # [P, N]
    log_share = logits.float().log_softmax(-1).masked_fill(~inside, 0.0)
    return -(log_share.sum(-1) / inside.sum(-1).clamp(min=1)).mean()


def iou_head_loss(score: Tensor, iou_box: Tensor, target: Tensor, absent: Tensor | None = None) -> Tensor:
    """Cross-entropy of predicted with true IoU, averaged over phrases and absent pairs.

    A soft target makes the mean prediction the expected IoU (as in IoU-aware detectors: Wu et al., IoU-aware
    Single-stage Object Detector, 2020).

    Args:
        score: logits [P]; absent: logits [A] of phrases that name nothing in their image, whose target is 0.
        judged, target: [P, 4] cxcywh, the box that the score is about and the true one.
    """
    iou = paired_iou(to_xyxy(iou_box.float()), to_xyxy(target.float())).clamp(0, 1)
    if absent is not None:
        score, iou = torch.cat([score, absent]), torch.cat([iou, torch.zeros_like(absent)])
    return F.binary_cross_entropy_with_logits(score, iou)


def tokens_inside(box: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which tokens have their centre in [P, 4] boxes, at least the nearest one -> bool [P, N]."""
    rows, columns = grid
    x = (torch.arange(columns, device=box.device) + 0.5) / columns
    y = (torch.arange(rows, device=box.device) + 0.5) / rows
    cx, cy, w, h = (part[:, None] for part in box.unbind(-1))
    # A box thinner than a token still owns the token its centre lies in.
    across = (x - cx).abs() <= torch.clamp(w, min=1 / columns) / 2  # [P, columns]
    down = (y - cy).abs() <= torch.clamp(h, min=1 / rows) / 2  # [P, rows]
    return (down[:, :, None] & across[:, None, :]).flatten(1)


def distillation_loss(student: Tensor, teacher: Tensor, distance: Distance) -> Tensor:
    """Distance of student vectors [P, D] from teacher vectors [P, E] pooled to D, averaged over phrases.

    Args:
        student, teacher: the vectors.
        distance: 1 - "cosine" (eq. 7), or "l1" (Table 3).
    """
    target = F.adaptive_avg_pool1d(teacher.float(), student.shape[-1])  # [P, D] (eq. 5, 6)
    if distance == "l1":
        return F.l1_loss(student.float(), target)
    return (1 - F.cosine_similarity(student.float(), target, dim=-1)).mean()


def dense_loss(output: GroundingOutput, teacher: SimilarityMap) -> Tensor:
    """KL divergence of the student's map over its visual tokens from the teacher's, averaged over phrases.

    The student's is its similarity map or, if it has none, its where-map. Padding takes no part, nor does what the
    teacher's own crop left out; a phrase of whose view it saw nothing has no term.

    Raises:
        InputError: the student has neither, or several maps of visual tokens.
    """
    logits = output.heatmap if output.similarity is None else output.similarity  # [P, N], -inf at padding
    if logits is None or output.grid is None:
        raise InputError(
            "distill.dense_weight needs one map over the student's visual tokens: "
            "set model.similarity=true and one stride."
        )
    shared = logits.isfinite() & tokens_within(teacher.frame, output.grid)
    phrases = shared.any(-1)
    hidden = ~shared[phrases]
    wanted = resample(teacher, output.grid)[phrases].masked_fill(hidden, -torch.inf).log_softmax(-1)
    own = logits[phrases].float().masked_fill(hidden, -torch.inf).log_softmax(-1)
    divergence = (wanted.exp() * (wanted - own).masked_fill(hidden, 0.0)).sum(-1)
    return divergence.sum() / max(1, len(divergence))


def tokens_within(frame: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which tokens have their centre within frames [P, 4] (xyxy, 0..1 of the canvas) -> bool [P, N]."""
    rows, columns = grid
    x0, y0, x1, y1 = (edge[:, None] for edge in frame.unbind(-1))
    x = (torch.arange(columns, device=frame.device) + 0.5) / columns
    y = (torch.arange(rows, device=frame.device) + 0.5) / rows
    across, down = (x > x0) & (x < x1), (y > y0) & (y < y1)
    return (down[:, :, None] & across[:, None, :]).flatten(1)


def resample(teacher: SimilarityMap, grid: tuple[int, int]) -> Tensor:
    """Read a teacher's map at the centres of the student's tokens -> [P, N], in rows and columns of `grid`.

    Bilinear, each of the four patches weighed by its share of picture: what the teacher saw of padding is not mixed in.
    """
    rows, columns = grid
    x0, y0, x1, y1 = (edge[:, None] for edge in teacher.frame.unbind(-1))
    x = (torch.arange(columns, device=x0.device) + 0.5) / columns
    y = (torch.arange(rows, device=y0.device) + 0.5) / rows
    across = ((x - x0) / (x1 - x0))[:, None, :].expand(-1, rows, -1)  # 0..1 of the teacher's grid
    down = ((y - y0) / (y1 - y0))[:, :, None].expand(-1, -1, columns)
    place = torch.stack([across, down], -1) * 2 - 1  # [P, rows, columns, 2]
    values = torch.stack([teacher.logits * teacher.content, teacher.content], 1).float()  # [P, 2, h, w]
    read = F.grid_sample(values, place.float(), padding_mode="border", align_corners=False)  # [P, 2, rows, columns]
    return (read[:, 0] / read[:, 1].clamp(min=1e-6)).flatten(1)
