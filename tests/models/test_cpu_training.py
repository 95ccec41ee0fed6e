"""Faster training in bfloat16 on CPUs: the same numbers in float32, and in bfloat16 only other rounding."""

from __future__ import annotations

import copy

import torch
from grounders import assert_close, random_inputs
from torch import nn

from epmvg.models.cpu_training import speed_up_bf16_training
from epmvg.models.factory import create_model
from epmvg.models.grounder import Grounder


def depthwise() -> Grounder:
    """A random `mini` with few layers: its backbone has depthwise convolutions."""
    torch.manual_seed(0)
    small = {"layers": 1, "width": 32, "heads": 2, "dim_feedforward": 64}
    return create_model("mini", image_size=64, text_encoder=small | {"frozen": []}, fusion=small)


def test_outputs_and_parameters_stay() -> None:
    plain = depthwise().eval()
    fast = copy.deepcopy(plain)
    speed_up_bf16_training(fast.visual_encoder.backbone, fast.text_encoder.bert)
    assert any(type(module).__name__.startswith("_Float32") for module in fast.visual_encoder.backbone.modules())
    assert list(fast.state_dict()) == list(plain.state_dict())
    inputs = random_inputs(plain)
    with torch.no_grad():
        assert_close(fast(*inputs), plain(*inputs))
    again = copy.deepcopy(fast)
    with torch.no_grad():
        assert_close(again(*inputs), fast(*inputs))


def test_depthwise_convolutions_compute_in_float32_and_train() -> None:
    model = depthwise().train()
    speed_up_bf16_training(model.visual_encoder.backbone, model.text_encoder.bert)
    dtypes: dict[str, torch.dtype] = {}
    for module in model.visual_encoder.backbone.modules():
        if isinstance(module, nn.Conv2d) and module.weight.requires_grad:
            kind = "depthwise" if module.groups > 1 else "dense"
            module.register_forward_hook(lambda *args, kind=kind: dtypes.__setitem__(kind, args[2].dtype))
    inputs = random_inputs(model)
    with torch.autocast("cpu", torch.bfloat16):
        model(*inputs).box.sum().backward()
    assert dtypes == {"depthwise": torch.float32, "dense": torch.bfloat16}
    trained = [p for p in model.visual_encoder.backbone.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None and p.grad.isfinite().all() for p in trained)
