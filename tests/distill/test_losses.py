"""Losses: equal to the published ones, finite where those are not, and 0 for equal embeddings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import pytest
import torch
from torchvision.ops import generalized_box_iou_loss

from epmvg.core.boxes import paired_iou, to_xyxy
from epmvg.core.types import GroundingOutput, InputError, SimilarityMap, TeacherEmbeddings
from epmvg.distill.losses import (
    DISTILLATION,
    GroundingLoss,
    box_loss,
    dense_loss,
    distillation_loss,
    giou_loss,
    heatmap_loss,
    match_loss,
    resample,
    tokens_inside,
)


def test_published_losses_and_overlaps(shared: Path) -> None:
    """TransVG's L1 and GIoU terms, IoUs and accuracy on its own table."""
    case = torch.load(shared / "parity" / "data_pipeline.pt", weights_only=True)["loss_metric"]
    predicted, target = case["pred"], case["target"]
    torch.testing.assert_close(box_loss(predicted, target, "l1"), case["loss_bbox"])
    torch.testing.assert_close(giou_loss(predicted, target), case["loss_giou"])
    iou = paired_iou(to_xyxy(predicted).clamp(0, 1), to_xyxy(target))
    torch.testing.assert_close(iou, case["iou"])
    assert int((iou >= 0.5).sum()) == case["n_correct"]


def test_smooth_l1_is_the_paper_s() -> None:
    """Half the square below one, summed over coordinates, averaged over phrases."""
    predicted, target = torch.rand(2, 7, 4, generator=torch.Generator().manual_seed(0)).unbind()
    expected = (predicted - target).square().sum(1).mean() / 2
    torch.testing.assert_close(box_loss(predicted, target, "smooth_l1"), expected)
    torch.testing.assert_close(box_loss(predicted + 2, target, "smooth_l1"), (predicted + 1.5 - target).sum(1).mean())


def test_giou_and_its_gradient_are_those_of_torchvision() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, target = (torch.rand(300, 4, generator=generator, dtype=torch.float64) * 0.5 + 0.1 for _ in range(2))
    weight = torch.rand(300, generator=generator, dtype=torch.float64)
    gradients = []
    for loss in (giou_loss(predicted.requires_grad_(), target), giou_loss(predicted, target, weight)):
        gradients.append(torch.autograd.grad(loss, predicted)[0])
    pairs = generalized_box_iou_loss(to_xyxy(predicted), to_xyxy(target))
    torch.testing.assert_close(giou_loss(predicted, target), pairs.mean())
    assert (pairs > 1).any() and (pairs < 1).any()
    for gradient, expected in zip(gradients, (pairs.mean(), (pairs * weight).sum() / weight.sum()), strict=True):
        (own,) = torch.autograd.grad(expected, predicted, retain_graph=True)
        torch.testing.assert_close(gradient, own)


def test_two_empty_boxes_have_a_loss_and_a_gradient() -> None:
    """The published GIoU is NaN here."""
    predicted = torch.tensor([[0.5, 0.5, 0.0, 0.0]], requires_grad=True)
    giou_loss(predicted, predicted.detach()).backward()
    assert predicted.grad is not None and predicted.grad.isfinite().all()


def output(phrases: int, width: int, grid: tuple[int, int] = (4, 4)) -> GroundingOutput:
    generator = torch.Generator().manual_seed(0)
    tokens = grid[0] * grid[1]
    return GroundingOutput(
        box=torch.rand(phrases, 4, generator=generator) * 0.5 + 0.2,
        visual=torch.randn(phrases, width, generator=generator),
        text=torch.randn(phrases, width, generator=generator),
        image_index=torch.arange(phrases) % 2,
        heatmap=torch.randn(phrases, tokens, generator=generator),
        token_boxes=torch.rand(phrases, tokens, 4, generator=generator) * 0.5 + 0.2,
        grid=grid,
    )


def test_terms_add_up_and_scale_with_their_weights() -> None:
    out, box = output(6, 8), torch.rand(6, 4) * 0.4 + 0.3
    teacher = TeacherEmbeddings(torch.randn(2, 16), torch.randn(6, 16))
    once, twice = (
        GroundingLoss()(out, box, teacher),
        GroundingLoss(giou_weight=2, image_weight=3, text_weight=4)(out, box, teacher),
    )
    torch.testing.assert_close(once.total, sum(once.terms.values()))
    for name in ("giou", "image", "text", "token_box_giou"):
        torch.testing.assert_close(twice.terms[name], 2 * once.terms[name])
    assert "image" not in GroundingLoss()(out, box).terms


@pytest.mark.parametrize(
    ("weights", "left_out"),
    [
        ({"giou_weight": 0}, {"giou", "token_box_giou"}),
        ({"image_weight": 0}, {"image"}),
        ({"text_weight": 0}, {"text"}),
    ],
)
def test_weight_0_removes_terms(weights: dict[str, float], left_out: set[str]) -> None:
    """Tables 3 and 7: the other terms are unchanged."""
    out, box = output(6, 8), torch.rand(6, 4) * 0.4 + 0.3
    teacher = TeacherEmbeddings(torch.randn(2, 16), torch.randn(6, 16))
    whole = GroundingLoss()(out, box, teacher).terms
    less = GroundingLoss(**weights)(out, box, teacher).terms  # type: ignore[arg-type]
    assert whole.keys() - less.keys() == left_out
    for name, term in less.items():
        torch.testing.assert_close(term, whole[name])


def test_missing_embedding_has_no_term() -> None:
    out, box = output(6, 8), torch.rand(6, 4)
    terms = GroundingLoss()(out, box, TeacherEmbeddings(text=torch.randn(6, 16))).terms
    assert "text" in terms and "image" not in terms


@pytest.mark.parametrize("distill_loss", ["cosine", "l1"])
def test_weights_of_phrases_repeat_them_or_leave_them_out(distill_loss: Literal["cosine", "l1"]) -> None:
    """Weight 2 is a copy of the phrase and a tiny one its absence, in every term; equal weights change nothing."""
    out, box = output(4, 8), torch.rand(4, 4) * 0.4 + 0.3
    out.reg_box, out.similarity, out.iou_box = box + 0.1, out.heatmap, out.box
    out.iou_logits, out.negative_iou_logits = torch.randn(4), torch.randn(3)
    out.negative_similarity = torch.randn(3, 9)
    teacher = TeacherEmbeddings(torch.randn(2, 16), torch.randn(4, 16), similarity_map(torch.randn(4, 4, 4)))
    loss_of = GroundingLoss(distill_loss=distill_loss, dense_weight=1.0, match_weight=1.0)

    def terms(phrases: list[int], weight: torch.Tensor | None = None) -> torch.Tensor:
        assert teacher.text is not None and teacher.similarity is not None
        values = {name: getattr(out, name) for name in out.__slots__}
        is_per_phrase = {name: isinstance(value, torch.Tensor) and len(value) == 4 for name, value in values.items()}
        chosen = {name: value[phrases] if is_per_phrase[name] else value for name, value in values.items()}
        similarity = similarity_map(teacher.similarity.logits[phrases])
        own = TeacherEmbeddings(teacher.image, teacher.text[phrases], similarity)
        losses = loss_of(GroundingOutput(**chosen), box[phrases], own, weight).terms
        assert len(losses) == 13
        return torch.stack(list(losses.values()))

    doubled = terms([0, 1, 2, 3], torch.tensor([1.0, 2.0, 1.0, 1.0]))
    torch.testing.assert_close(doubled, terms([0, 1, 1, 2, 3]))
    torch.testing.assert_close(terms([0, 1, 2, 3], torch.tensor([1.0, 1e-12, 1.0, 1.0])), terms([0, 2, 3]))
    torch.testing.assert_close(terms([0, 1, 2, 3], torch.ones(4)), terms([0, 1, 2, 3]))


@pytest.mark.parametrize("width", [8, 16, 32])
def test_distillation_loss_is_0_for_equal_embeddings(width: int) -> None:
    """Equal vectors, pooled to the student's width first, and any positive multiple of them for the cosine."""
    vectors = torch.randn(5, 16)
    pooled = torch.nn.functional.adaptive_avg_pool1d(vectors, width)
    assert distillation_loss(pooled, vectors, "l1") < 1e-6
    assert distillation_loss(pooled * 3, vectors, "cosine") < 1e-6
    torch.testing.assert_close(distillation_loss(-pooled, vectors, "cosine"), torch.tensor(2.0))


WHOLE_INPUT = torch.tensor([0.0, 0.0, 1.0, 1.0])


def similarity_map(logits: torch.Tensor, grid_box: torch.Tensor = WHOLE_INPUT) -> SimilarityMap:
    return SimilarityMap(logits, torch.ones_like(logits), grid_box.expand(len(logits), -1))


def test_map_is_resampled_in_its_grid_box() -> None:
    """Over the whole input it is unchanged, mirrored it is flipped, in a quarter of the input it is there only."""
    logits = torch.randn(3, 4, 6)
    torch.testing.assert_close(resample(similarity_map(logits), (4, 6)).view(3, 4, 6), logits)
    mirrored = resample(similarity_map(logits, torch.tensor([1.0, 0.0, 0.0, 1.0])), (4, 6)).view(3, 4, 6)
    torch.testing.assert_close(mirrored, logits.flip(2))
    quarter = resample(similarity_map(logits, torch.tensor([0.5, 0.0, 1.0, 0.5])), (8, 12)).view(3, 8, 12)
    torch.testing.assert_close(quarter[:, :4, 6:], logits)


def test_padding_of_the_teacher_is_not_resampled() -> None:
    logits = torch.randn(2, 4, 4)
    content = torch.ones(2, 4, 4)
    content[:, 3] = 0
    similarity = SimilarityMap(logits, content, WHOLE_INPUT.expand(2, -1))
    before = resample(similarity, (8, 8)).view(2, 8, 8)[:, :6]
    logits[:, 3] = 1e3
    torch.testing.assert_close(resample(similarity, (8, 8)).view(2, 8, 8)[:, :6], before)


def test_dense_loss_is_0_only_for_equal_maps() -> None:
    out = output(3, 8)
    logits = torch.randn(3, 4, 4)
    equal = logits.flatten(1) + 5  # a constant does not change a softmax
    equal[:, :4] = -torch.inf  # padding
    out.similarity = equal.clone().requires_grad_()
    assert dense_loss(out, similarity_map(logits)).abs() < 1e-6
    loss = dense_loss(out, similarity_map(logits.flip(2)))
    assert loss > 1e-2
    loss.backward()
    assert out.similarity.grad is not None and out.similarity.grad.isfinite().all()
    assert (out.similarity.grad[:, :4] == 0).all()
    out.similarity = None
    assert dense_loss(out, similarity_map(logits)) > 0  # of the heatmap
    out.heatmap = None
    with pytest.raises(InputError, match="one similarity map"):
        dense_loss(out, similarity_map(logits))


def test_image_embedding_is_compared_with_each_phrase_of_its_image() -> None:
    out, box = output(4, 8), torch.rand(4, 4)
    images = torch.randn(2, 8)
    grouped = GroundingLoss()(out, box, TeacherEmbeddings(images, torch.randn(4, 8))).terms["image"]
    out.image_index = torch.arange(4)
    apart = GroundingLoss()(out, box, TeacherEmbeddings(images[[0, 1, 0, 1]], torch.randn(4, 8))).terms["image"]
    torch.testing.assert_close(grouped, apart)


def test_targets_in_padding_have_finite_losses() -> None:
    """Every token inside each box is padding: the token boxes have no loss, the other terms have."""
    box = torch.tensor([[0.125, 0.125, 0.2, 0.2]] * 2)
    heatmap = torch.zeros(2, 16, requires_grad=True)
    masked = heatmap.masked_fill(tokens_inside(box, (4, 4)), -math.inf)
    token_boxes = torch.full((2, 16, 4), 0.3, requires_grad=True)
    vector = torch.ones(2, 8)
    output = GroundingOutput(
        box + 0.01, vector, vector, torch.arange(2), heatmap=masked, token_boxes=token_boxes, grid=(4, 4)
    )
    loss = GroundingLoss()(output, box)
    loss.total.backward()
    assert loss.total.isfinite() and loss.terms["token_box_giou"] == 0
    assert token_boxes.grad is not None and (token_boxes.grad == 0).all()


def test_tokens_inside_a_box() -> None:
    box = torch.tensor([[0.5, 0.5, 0.5, 0.25], [0.1, 0.9, 0.01, 0.01], [0.5, 0.5, 1.0, 1.0]])
    inside = tokens_inside(box, (8, 8)).view(3, 8, 8)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[3:5, 2:6] = True
    assert torch.equal(inside[0], expected)
    assert inside[1].sum() == 1 and inside[1, 7, 0]
    assert inside[2].all()


def test_heatmap_loss_falls_as_the_map_concentrates_in_the_box() -> None:
    box = torch.tensor([[0.25, 0.25, 0.5, 0.5]])
    inside = tokens_inside(box, (4, 4)).float()
    values = [heatmap_loss(inside * sharpness, box, (4, 4)).item() for sharpness in (-5, 0, 5, 50)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(inside.sum().log().item(), abs=1e-4)


def test_the_match_loss_ranks_phrases_above_negative_pairs() -> None:
    """It compares only, so that a constant changes nothing, and its descent ranks every pair right."""
    generator = torch.Generator().manual_seed(0)
    similarity, negative = (torch.randn(count, 9, generator=generator) for count in (5, 7))
    loss = match_loss(similarity, negative)
    torch.testing.assert_close(match_loss(similarity + 3, negative + 3), loss)
    equal = torch.zeros(5, 9)
    torch.testing.assert_close(match_loss(equal, equal), torch.tensor(math.log(2)))

    padded = torch.cat([similarity, torch.full((5, 3), -torch.inf)], 1).requires_grad_()
    torch.testing.assert_close(match_loss(padded, negative), loss)
    for _ in range(200):
        (gradient,) = torch.autograd.grad(match_loss(padded, negative), padded)
        assert gradient.isfinite().all() and not gradient[:, 9:].any()
        padded = (padded - gradient).detach().requires_grad_()
    assert padded.logsumexp(-1).min() > negative.logsumexp(-1).max()


def test_unlabeled_phrases_have_distillation_losses_only() -> None:
    """As if the labeled phrases were alone in the losses of boxes, and all were labeled in the others."""
    torch.manual_seed(0)
    boxes = torch.rand(4, 4) * 0.4 + 0.2
    output = GroundingOutput(torch.rand(4, 4), torch.rand(4, 8), torch.rand(4, 8), torch.arange(4), grid=(2, 2))
    output.similarity = torch.rand(4, 4)
    maps = SimilarityMap(torch.rand(4, 2, 2), torch.ones(4, 2, 2), torch.tensor([0.0, 0, 1, 1]).expand(4, -1))
    teacher = TeacherEmbeddings(torch.rand(4, 8), torch.rand(4, 8), maps)
    loss_of = GroundingLoss(dense_weight=1)
    mixed = loss_of(output, boxes, teacher, torch.tensor([2.0, 0, 1, 0])).terms
    teachers_own = loss_of(output, boxes, teacher, torch.tensor([2.0, 1, 1, 1])).terms
    boxes_own = loss_of(output, boxes, teacher, torch.tensor([2.0, 1e-9, 1, 1e-9])).terms
    assert mixed.keys() > set(DISTILLATION)
    for name, term in mixed.items():
        torch.testing.assert_close(term, (teachers_own if name in DISTILLATION else boxes_own)[name])
    none = loss_of(output, boxes, teacher, torch.zeros(4)).terms
    assert all((term > 0) == (name in DISTILLATION) for name, term in none.items())
