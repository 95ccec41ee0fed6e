"""Swin: gates depend on the phrase, gradient checkpointing saves memory, settings are validated."""

from __future__ import annotations

import torch
from grounders import random_inputs

from epmvg.models.factory import create_model
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
