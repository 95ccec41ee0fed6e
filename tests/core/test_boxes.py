"""Boxes: conversions undo each other, IoU behaves as an overlap, the letterbox crosses both ways."""

from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_iou as torchvision_iou

from epmvg.core.boxes import box_iou, paired_iou, to_cxcywh, to_xyxy
from epmvg.core.geometry import Letterbox


def random_boxes(count: int, seed: int = 0) -> torch.Tensor:
    corner = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 100
    size = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64) * 80 + 1
    return torch.cat([corner, corner + size], 1)


def test_conversions_undo_each_other() -> None:
    boxes = random_boxes(50)
    torch.testing.assert_close(to_xyxy(to_cxcywh(boxes)), boxes)


def test_arrays_and_tensors_give_the_same_boxes() -> None:
    a, b = random_boxes(50), random_boxes(40, 3)
    for convert in (to_xyxy, to_cxcywh):
        assert (convert(a.numpy()) == convert(a).numpy()).all()
    torch.testing.assert_close(torch.from_numpy(box_iou(a.numpy(), b.numpy())), torchvision_iou(a, b))


def test_paired_iou_is_the_diagonal_of_the_pairwise_one() -> None:
    a, b = random_boxes(60, 1), random_boxes(60, 7)
    torch.testing.assert_close(paired_iou(a, b), torchvision_iou(a, b).diagonal())


def test_iou_of_empty_boxes_is_0() -> None:
    empty = torch.tensor([[3.0, 3.0, 3.0, 3.0]])
    assert paired_iou(empty, empty).item() == 0


@given(st.integers(1, 3000), st.integers(1, 3000), st.booleans())
def test_letterbox_conversions_undo_each_other(width: int, height: int, flip: bool) -> None:
    box = torch.tensor([0.1 * width, 0.2 * height, 0.7 * width, 0.9 * height], dtype=torch.float64)
    fit = Letterbox.fit(width, height, 640)
    letterbox = Letterbox(fit.width, fit.height, 640, fit.scale_x, fit.scale_y, fit.left, fit.top, flip)
    inside = letterbox.to_input(box)
    torch.testing.assert_close(letterbox.to_image(inside), box, rtol=1e-9, atol=1e-6)


def test_letterbox_keeps_overlaps() -> None:
    a, b = random_boxes(40, 3), random_boxes(40, 4)
    letterbox = Letterbox.fit(300, 200, 256)
    inside = paired_iou(to_xyxy(letterbox.to_input(a)), to_xyxy(letterbox.to_input(b)))
    torch.testing.assert_close(inside, paired_iou(a, b))


def test_the_canvas_gives_the_published_metric() -> None:
    """TransVG clamps cxcywh boxes as corners in 0..1 of the padded square, and never the target."""
    predicted, target = to_cxcywh(random_boxes(80, 5) / 90 - 0.4), random_boxes(80, 6)
    for width, height in ((200, 150), (90, 180), (200, 200)):
        letterbox = Letterbox.fit(width, height, 256)
        published = paired_iou(to_xyxy(predicted).clamp(0, 1), to_xyxy(letterbox.to_input(target)))
        ours = paired_iou(letterbox.to_image(predicted, "canvas"), target)
        torch.testing.assert_close(ours, published)
        clipped = letterbox.to_image(predicted, "canvas")
        limits = torch.tensor([width, height] * 2, dtype=torch.float64)
        again = torch.minimum(clipped.clamp(min=0), limits)
        torch.testing.assert_close(again, letterbox.to_image(predicted))  # so that files of both can be compared
        assert torch.allclose(again, clipped) == (width == height)


def test_published_evaluation_boxes(shared: Path) -> None:
    """Our letterbox puts a box where TransVG's evaluation transform puts it, before that cuts boxes to integers."""
    cases = torch.load(shared / "parity" / "data_pipeline.pt", weights_only=True)["eval_transform"]
    for case in cases:
        ours = Letterbox.fit(case["size_wh"][0], case["size_wh"][1], 640).to_input(case["box_xyxy"])
        torch.testing.assert_close(ours, case["out_box"], atol=1e-6, rtol=0)
