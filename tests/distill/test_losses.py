"""Losses: the published figures, finite where the published ones are not, zero where there is nothing to learn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from epmvg.boxes import paired_giou, paired_iou, to_xyxy
from epmvg.distill.losses import GroundingLoss, box_loss, distillation_loss, giou_loss, tokens_inside, where_loss
from epmvg.types import Embeddings, Output


def test_published_losses_and_overlaps(shared: Path) -> None:
    """TransVG's L1 and GIoU terms, IoUs and accuracy on its own table."""
    case = torch.load(shared / "parity" / "data_pipeline.pt", weights_only=True)["loss_metric"]
    predicted, target = case["pred"], case["target"]
    torch.testing.assert_close(box_loss(predicted, target, "l1"), case["loss_bbox"])
    torch.testing.assert_close(giou_loss(predicted, target), case["loss_giou"])
    torch.testing.assert_close(paired_giou(to_xyxy(predicted), to_xyxy(target)), case["giou"])
    iou = paired_iou(to_xyxy(predicted).clamp(0, 1), to_xyxy(target))
    torch.testing.assert_close(iou, case["iou"])
    assert int((iou >= 0.5).sum()) == case["n_correct"]


def test_two_empty_boxes_have_a_loss_and_a_gradient() -> None:
    """The published GIoU is NaN here."""
    predicted = torch.tensor([[0.5, 0.5, 0.0, 0.0]], requires_grad=True)
    giou_loss(predicted, predicted.detach()).backward()
    assert predicted.grad is not None and predicted.grad.isfinite().all()


def output(phrases: int, width: int, grid: tuple[int, int] = (4, 4)) -> Output:
    generator = torch.Generator().manual_seed(0)
    places = grid[0] * grid[1]
    return Output(
        box=torch.rand(phrases, 4, generator=generator) * 0.5 + 0.2,
        visual=torch.randn(phrases, width, generator=generator),
        text=torch.randn(phrases, width, generator=generator),
        owner=torch.arange(phrases) % 2,
        where=torch.randn(phrases, places, generator=generator),
        votes=torch.rand(phrases, places, 4, generator=generator) * 0.5 + 0.2,
        grid=grid,
    )


def test_terms_add_up_and_scale_with_their_weights() -> None:
    out, box = output(6, 8), torch.rand(6, 4) * 0.4 + 0.3
    teacher = Embeddings(torch.randn(2, 16), torch.randn(6, 16))
    once, twice = GroundingLoss()(out, box, teacher), GroundingLoss(giou=2, image=3, text=4)(out, box, teacher)
    torch.testing.assert_close(once.total, sum(once.terms.values()))
    for name in ("giou", "image", "text", "votes_giou"):
        torch.testing.assert_close(twice.terms[name], 2 * once.terms[name])
    assert "image" not in GroundingLoss()(out, box).terms


@pytest.mark.parametrize("width", [8, 16, 32])
def test_a_student_that_agrees_with_its_teacher_has_nothing_to_learn(width: int) -> None:
    """Equal vectors, pooled to the student's width first, and any positive multiple of them for the cosine."""
    vectors = torch.randn(5, 16)
    pooled = torch.nn.functional.adaptive_avg_pool1d(vectors, width)
    assert distillation_loss(pooled, vectors, "l1") < 1e-6
    assert distillation_loss(pooled * 3, vectors, "cosine") < 1e-6
    torch.testing.assert_close(distillation_loss(-pooled, vectors, "cosine"), torch.tensor(2.0))


def test_the_image_vector_goes_to_each_phrase_of_its_image() -> None:
    out, box = output(4, 8), torch.rand(4, 4)
    images = torch.randn(2, 8)
    grouped = GroundingLoss()(out, box, Embeddings(images, torch.randn(4, 8))).terms["image"]
    out.owner = torch.arange(4)
    apart = GroundingLoss()(out, box, Embeddings(images[[0, 1, 0, 1]], torch.randn(4, 8))).terms["image"]
    torch.testing.assert_close(grouped, apart)


def test_tokens_inside_agree_with_a_drawn_mask() -> None:
    box = torch.tensor([[0.5, 0.5, 0.5, 0.25], [0.1, 0.9, 0.01, 0.01], [0.5, 0.5, 1.0, 1.0]])
    inside = tokens_inside(box, (8, 8)).view(3, 8, 8)
    drawn = torch.zeros(8, 8, dtype=torch.bool)
    drawn[3:5, 2:6] = True
    assert torch.equal(inside[0], drawn)
    assert inside[1].sum() == 1 and inside[1, 7, 0]
    assert inside[2].all()


def test_the_where_loss_falls_as_the_map_gathers_in_the_box() -> None:
    box = torch.tensor([[0.25, 0.25, 0.5, 0.5]])
    inside = tokens_inside(box, (4, 4)).float()
    values = [where_loss(inside * sharpness, box, (4, 4)).item() for sharpness in (-5, 0, 5, 50)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(inside.sum().log().item(), abs=1e-4)
