"""Box losses, distillation losses and their weighted sum (eq. 5-8)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from epmvg.core.boxes import paired_iou, to_xyxy
from epmvg.core.types import GroundingOutput, InputError, SimilarityMap, TeacherEmbeddings

BoxLossName = Literal["l1", "smooth_l1"]
DistillLossName = Literal["cosine", "l1"]

DISTILLATION = ("image", "text", "dense")
"""Names of the terms that compare with a teacher, and need no box."""

_EPSILON = 1e-7
"""Added to areas that are divided by, as torchvision does."""


@dataclass(slots=True)
class Losses:
    """Weighted terms by name; `total` is their sum."""

    terms: dict[str, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        return self.scaled(1.0, 1.0)

    def scaled(self, boxes: float, distillation: float) -> Tensor:
        """Sum with factors of the losses of boxes and of the distillation losses."""
        factors = [distillation if name in DISTILLATION else boxes for name in self.terms]
        return torch.stack([factor * term for factor, term in zip(factors, self.terms.values(), strict=True)]).sum()

    def add(self, name: str, weight: float, loss: Tensor) -> None:
        """Add a term, unless its weight is 0."""
        if weight:
            self.terms[name] = weight * loss


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundingLoss:
    """Compare a student's output with target boxes and, if there is a teacher, with its embeddings (eq. 8).

    A term whose weight is 0 is left out.

    Args:
        box: "smooth_l1" (eq. 8) or "l1" (TransVG), summed over the four coordinates, averaged over phrases.
        box_weight: Of that term.
        giou_weight: lambda of eq. 8 (Table 7).
        image_weight, text_weight: alpha and beta of eq. 7 (Table 3).
        distill_loss: Between student and teacher embeddings, as for `distillation_loss`.
        dense_weight: Of the teacher's similarity map.
        heatmap_weight, similarity_weight: Of the student's heatmap and similarity map against the tokens inside the
            target.
        match_weight: Of the similarity of phrases with their images against that of negative pairs.
        reg_box_weight: Of both box terms of the box from [REG], where the student also has a dense head.
        token_box_weight: Of both box terms of the boxes that tokens inside the target predict.
        iou_head_weight: Of the predicted IoU.
    """

    box: BoxLossName = "smooth_l1"
    box_weight: float = 1.0
    giou_weight: float = 1.0
    image_weight: float = 1.5
    text_weight: float = 2.0
    distill_loss: DistillLossName = "cosine"
    dense_weight: float = 0.0
    heatmap_weight: float = 1.0
    similarity_weight: float = 0.5
    match_weight: float = 0.0
    reg_box_weight: float = 0.5
    token_box_weight: float = 1.0
    iou_head_weight: float = 1.0

    def __call__(
        self,
        output: GroundingOutput,
        boxes: Tensor,
        teacher: TeacherEmbeddings | None = None,
        weight: Tensor | None = None,
    ) -> Losses:
        """Compute the weighted terms.

        Args:
            output: Of P phrases.
            boxes: Targets [P, 4], cxcywh in 0..1 of the network input.
            teacher: Its embeddings of the same batch.
            weight: Of the phrases [P]: each mean over phrases becomes sum(weight * loss) / sum(weight), as if a phrase
                were there `weight` times. Unlabeled phrases have weight 0, and 1 in the distillation losses. Negative
                pairs have weight 1.

        Raises:
            InputError: The output lacks what the teacher is to be compared with.
        """
        losses = Losses()
        distillation_weight = None if weight is None else torch.where(weight > 0, weight, 1.0)

        # box regression + lambda * GIoU + distillation (eq. 8)
        losses.add(self.box, self.box_weight, box_loss(output.box, boxes, self.box, weight))
        losses.add("giou", self.giou_weight, giou_loss(output.box, boxes, weight))  # lambda (eq. 8)
        if teacher is not None and teacher.image is not None:
            target = teacher.image[output.image_index]  # [DIE] of each phrase's image
            image_loss = distillation_loss(output.visual, target, self.distill_loss, distillation_weight)
            losses.add("image", self.image_weight, image_loss)  # alpha (eq. 7)
        if teacher is not None and teacher.text is not None:
            text_loss = distillation_loss(output.text, teacher.text, self.distill_loss, distillation_weight)
            losses.add("text", self.text_weight, text_loss)  # beta (eq. 7)

        # beyond the paper
        if teacher is not None and teacher.similarity is not None:
            losses.add("dense", self.dense_weight, dense_loss(output, teacher.similarity, distillation_weight))
        if output.reg_box is not None:
            self._add_boxes(losses, "reg_box", self.reg_box_weight, output.reg_box, boxes, weight)
        if output.token_boxes is not None and output.grid is not None:
            self._add_token_boxes(losses, output, output.token_boxes, output.grid, boxes, weight)
        for name, scale, logits in (
            ("heatmap", self.heatmap_weight, output.heatmap),
            ("similarity", self.similarity_weight, output.similarity),
        ):
            if logits is not None and output.grid is not None:
                losses.add(name, scale, heatmap_loss(logits, boxes, output.grid, weight))
        if output.similarity is not None and output.negative_similarity is not None:
            matched = match_loss(output.similarity, output.negative_similarity, weight)
            losses.add("match", self.match_weight, matched)
        if output.iou_logits is not None and output.iou_box is not None:
            iou_loss = iou_head_loss(output.iou_logits, output.iou_box, boxes, output.negative_iou_logits, weight)
            losses.add("iou_head", self.iou_head_weight, iou_loss)
        return losses

    def _add_boxes(
        self,
        losses: Losses,
        name: str,
        scale: float,
        predicted: Tensor,
        target: Tensor,
        weight: Tensor | None,
    ) -> None:
        """Add both box terms of another predicted box."""
        box = box_loss(predicted, target, self.box, weight)
        losses.add(f"{name}_{self.box}", scale * self.box_weight, box)
        losses.add(f"{name}_giou", scale * self.giou_weight, giou_loss(predicted, target, weight))

    def _add_token_boxes(
        self,
        losses: Losses,
        output: GroundingOutput,
        token_boxes: Tensor,
        grid: tuple[int, int],
        boxes: Tensor,
        weight: Tensor | None,
    ) -> None:
        """Add the box terms of tokens inside the target, which share the weight of their phrase."""
        inside = tokens_inside(boxes, grid)
        if output.heatmap is not None:
            inside &= output.heatmap.isfinite()
        fraction = inside / inside.sum(-1, keepdim=True).clamp(min=1)  # [P, N]; to select tokens would wait for a GPU
        fraction = fraction if weight is None else fraction * weight[:, None]
        targets = boxes[:, None].expand_as(token_boxes)
        self._add_boxes(losses, "token_box", self.token_box_weight, token_boxes, targets, fraction)


def distillation_loss(student: Tensor, teacher: Tensor, name: DistillLossName, weight: Tensor | None = None) -> Tensor:
    """Compare student vectors [P, D] with teacher vectors [P, E] pooled to D, averaged over phrases.

    Args:
        student, teacher: [VLS] with [DIE], or [CLS] with [DTE].
        name: 1 - "cosine" (eq. 7), or "l1" (Table 3).
        weight: Of the phrases [P]; here and below it makes the mean over phrases a weighted one.
    """
    target = F.adaptive_avg_pool1d(teacher.float(), student.shape[-1])  # [P, D] (eq. 5, 6)
    if name == "l1":
        difference = F.l1_loss(student.float(), target, reduction="none")
        return _mean(difference, None if weight is None else weight[:, None].expand_as(difference))
    return _mean(1 - F.cosine_similarity(student.float(), target, dim=-1), weight)


def box_loss(predicted: Tensor, target: Tensor, name: BoxLossName, weight: Tensor | None = None) -> Tensor:
    """L1 or smooth L1 of [..., 4] boxes, summed over coordinates, averaged over phrases (TransVG's reduction)."""
    loss_fn = F.l1_loss if name == "l1" else F.smooth_l1_loss
    return _mean(loss_fn(predicted, target, reduction="none").sum(-1), weight)


def giou_loss(predicted: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of 1 - GIoU over paired [..., 4] cxcywh boxes, weighted by [...] if given.

    As `torchvision.ops.generalized_box_iou_loss`, which selects boxes that overlap: in each call it waits for a GPU.
    """
    a, b = to_xyxy(predicted), to_xyxy(target)
    overlap = _area((torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0))
    union = _area(a[..., 2:] - a[..., :2]) + _area(b[..., 2:] - b[..., :2]) - overlap
    hull = _area(torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2]))
    giou = overlap / (union + _EPSILON) - (hull - union) / (hull + _EPSILON)
    return _mean(1 - giou, weight)


def _area(sides: Tensor) -> Tensor:
    """Multiply width and height [..., 2]."""
    return sides[..., 0] * sides[..., 1]


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of values, or sum(weight * value) / sum(weight) with weights of the same shape."""
    if weight is None:
        return values.mean()
    return (values * weight).sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)  # 0 without values


def heatmap_loss(logits: Tensor, boxes: Tensor, grid: tuple[int, int], weight: Tensor | None = None) -> Tensor:
    """Cross-entropy of a heatmap over visual tokens with the tokens inside the target box.

    Args:
        logits: [P, N], -inf at padding.
        boxes: Targets [P, 4], cxcywh in 0..1 of the network input.
        grid: (rows, columns) of the N tokens.
    """
    inside = tokens_inside(boxes, grid) & logits.isfinite()  # [P, N]
    log_probability = logits.float().log_softmax(-1).masked_fill(~inside, 0.0)
    return -_mean(log_probability.sum(-1) / inside.sum(-1).clamp(min=1), weight)


def match_loss(similarity: Tensor, negative_similarity: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy of ranking each phrase with its image above every negative pair of the batch.

    A smooth 1 - AUROC (the pairwise loss of RankNet, Burges et al. 2005), so that similarities can be compared between
    phrases and between images: the loss of the similarity map only compares tokens of one image.

    Args:
        similarity: Logits [P, N] of phrases and visual tokens, -inf at padding.
        negative_similarity: The same of negative pairs [A, n].
    """
    matched, negative = similarity.logsumexp(-1), negative_similarity.logsumexp(-1)  # smooth maxima
    return _mean(F.softplus(negative - matched[:, None]).mean(-1), weight)


def iou_head_loss(
    logits: Tensor,
    predicted: Tensor,
    target: Tensor,
    negative_logits: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of predicted with true IoU, averaged over phrases and negative pairs.

    A soft target makes the mean prediction the expected IoU (as in IoU-aware detectors: Wu et al., IoU-aware
    Single-stage Object Detector, 2020).

    Args:
        logits: Of the IoU [P]; negative_logits: of phrases that name nothing in their image [A], whose IoU is 0.
        predicted, target: [P, 4] cxcywh, the box that the logits are about and the true one.
    """
    iou = paired_iou(to_xyxy(predicted.float()), to_xyxy(target.float())).clamp(0, 1)
    if negative_logits is not None:
        logits, iou = torch.cat([logits, negative_logits]), torch.cat([iou, torch.zeros_like(negative_logits)])
        weight = None if weight is None else torch.cat([weight, torch.ones_like(negative_logits)])
    return _mean(F.binary_cross_entropy_with_logits(logits, iou, reduction="none"), weight)


def dense_loss(output: GroundingOutput, teacher: SimilarityMap, weight: Tensor | None = None) -> Tensor:
    """KL divergence of the student's similarity map, or else heatmap, from the teacher's, averaged over phrases.

    Padding is left out, and so is what the teacher's crop does not contain; a phrase without any common token has no
    term.

    Raises:
        InputError: The student has neither, or several feature levels.
    """
    logits = output.heatmap if output.similarity is None else output.similarity  # [P, N], -inf at padding
    if logits is None or output.grid is None:
        raise InputError(
            "distill.dense_weight needs one similarity map over the student's visual tokens. Set model.similarity=true "
            "and one stride."
        )
    common = logits.isfinite() & tokens_within(teacher.grid_box, output.grid)
    phrases = common.any(-1, keepdim=True)  # [P, 1]; the others get a distribution of weight 0, and no gradient
    masked = ~common & phrases
    own = torch.where(common, logits.float(), 0.0)  # the gradient of what is -inf would be NaN
    target = resample(teacher, output.grid).masked_fill(masked, -torch.inf).log_softmax(-1)
    student = own.masked_fill(masked, -torch.inf).log_softmax(-1)
    divergence = (target.exp() * (target - student).masked_fill(~common, 0.0)).sum(-1)
    present = phrases[:, 0].to(divergence)
    return _mean(divergence, present if weight is None else present * weight)


def _centers(count: int, device: torch.device) -> Tensor:
    return (torch.arange(count, device=device) + 0.5) / count


def tokens_inside(boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return which tokens have their center in cxcywh boxes [P, 4], at least the nearest one: bool [P, N]."""
    (rows, columns), device = grid, boxes.device
    cx, cy, w, h = (part[:, None] for part in boxes.unbind(-1))
    # A box thinner than a token still contains the token of its center.
    inside_x = (_centers(columns, device) - cx).abs() <= torch.clamp(w, min=1 / columns) / 2  # [P, columns]
    inside_y = (_centers(rows, device) - cy).abs() <= torch.clamp(h, min=1 / rows) / 2  # [P, rows]
    return (inside_y[:, :, None] & inside_x[:, None, :]).flatten(1)


def tokens_within(grid_box: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return which tokens have their center within xyxy boxes [P, 4]: bool [P, N]."""
    x0, y0, x1, y1 = (edge[:, None] for edge in grid_box.unbind(-1))
    x, y = _centers(grid[1], grid_box.device), _centers(grid[0], grid_box.device)
    inside_x, inside_y = (x > x0) & (x < x1), (y > y0) & (y < y1)
    return (inside_y[:, :, None] & inside_x[:, None, :]).flatten(1)


def resample(teacher: SimilarityMap, grid: tuple[int, int]) -> Tensor:
    """Interpolate a teacher's similarity map at the centers of the student's tokens -> [P, N].

    Bilinear; each of the four patches is weighted by the fraction of it that is image and not padding.
    """
    rows, columns = grid
    x0, y0, x1, y1 = (edge[:, None] for edge in teacher.grid_box.unbind(-1))
    x, y = _centers(columns, x0.device), _centers(rows, x0.device)
    grid_x = ((x - x0) / (x1 - x0))[:, None, :].expand(-1, rows, -1)  # 0..1 of the teacher's grid
    grid_y = ((y - y0) / (y1 - y0))[:, :, None].expand(-1, -1, columns)
    points = torch.stack([grid_x, grid_y], -1) * 2 - 1  # [P, rows, columns, 2]
    values = torch.stack([teacher.logits * teacher.content, teacher.content], 1).float()  # [P, 2, h, w]
    sampled = F.grid_sample(values, points.float(), padding_mode="border", align_corners=False)  # [P, 2, rows, columns]
    return (sampled[:, 0] / sampled[:, 1].clamp(min=1e-6)).flatten(1)
