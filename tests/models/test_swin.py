"""Swin: gates depend on the phrase, gradient checkpointing saves memory, settings are validated."""

from __future__ import annotations

import pytest
import torch
from grounders import random_inputs
from timm.models.swin_transformer import SwinTransformerBlock

from epmvg.models.factory import build, create_model
from epmvg.models.presets import preset
from reference.activations import LiveTensors


@torch.no_grad()
def test_query_aware_tokens_depend_on_the_phrase() -> None:
    torch.manual_seed(0)
    model = create_model("tiny-swin").eval()
    image, image_mask = torch.rand(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.bool)
    query, image_index = torch.randn(2, model.text_encoder.width), torch.zeros(2, dtype=torch.int64)
    features = model.visual_encoder.backbone_features(image, image_mask)
    same = model.visual_encoder.visual_tokens(features, image_mask, query, image_index)
    assert torch.equal(same[0], same[1])  # V = 0: every gate is a half
    for name, parameter in model.visual_encoder.named_parameters():
        if name.endswith(".V"):
            torch.nn.init.normal_(parameter)
    differ = model.visual_encoder.visual_tokens(features, image_mask, query, image_index)
    assert (differ[0] - differ[1]).abs().max() > 1e-3


def test_stochastic_depth_rises_from_block_to_block() -> None:
    """From 0 to 0.2 over Swin-S's 24 blocks, as QRNet's configuration states."""
    for name in ("qrnet-swin-s", "transvg-swin-s"):
        with torch.device("meta"):
            stages = build(preset(name)).visual_encoder.backbone.children()
        blocks = [part for stage in stages for part in stage.modules() if isinstance(part, SwinTransformerBlock)]
        rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
        assert rates == pytest.approx([0.2 * number / 23 for number in range(24)])


def test_gradient_checkpointing_saves_memory() -> None:
    """A block keeps only its input; BERT, the neck and the fusion keep the rest."""
    model = create_model("tiny-swin").train()
    inputs, megabytes = random_inputs(model), []
    for checkpointed in (False, True):
        model.set_grad_checkpointing(checkpointed)
        with LiveTensors([*model.parameters(), *model.buffers(), *inputs]) as live:
            box = model(*inputs).box
        megabytes.append(live.megabytes())
        del box
    assert megabytes[1] < 0.7 * megabytes[0]
