"""Heatmaps are -inf at padding, and the median box is robust to outliers."""

from __future__ import annotations

import torch
from grounders import random_inputs

from epmvg.models.dense_head import mean_box, median_box
from epmvg.models.factory import create_model


@torch.no_grad()
def test_heatmap_and_similarity_are_inf_at_padding_only() -> None:
    model = create_model("tiny-resnet", dense_head=True, similarity=True).eval()
    image, image_mask, tokens, token_mask, image_index = random_inputs(model)
    output = model(image, image_mask, tokens, token_mask, image_index)
    assert output.heatmap is not None and output.similarity is not None
    (token_pad_of_image,) = model.visual_encoder.token_masks(image_mask)
    token_content = ~token_pad_of_image.flatten(1)[image_index]
    assert torch.equal(output.heatmap.isfinite(), token_content)
    assert torch.equal(output.similarity.isfinite(), token_content)


def test_the_median_box_is_robust_to_outliers() -> None:
    near, far = torch.tensor([0.3, 0.4, 0.2, 0.2]), torch.tensor([0.9, 0.9, 0.1, 0.1])
    token_boxes = torch.stack([near] * 7 + [far] * 3)[None]
    heatmap = torch.zeros(1, 10)
    torch.testing.assert_close(median_box(heatmap, token_boxes)[0], near)
    assert (mean_box(heatmap, token_boxes)[0] - near).abs().max() > 0.1
    shuffled = torch.randperm(10)
    torch.testing.assert_close(median_box(heatmap, token_boxes[:, shuffled])[0], near)
    padded = torch.cat([heatmap, torch.full((1, 5), -torch.inf)], 1)
    torch.testing.assert_close(median_box(padded, torch.cat([token_boxes, torch.zeros(1, 5, 4)], 1))[0], near)
