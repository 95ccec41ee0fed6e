"""Fused norms change no output, and norms that cannot be fused stay."""

from __future__ import annotations

from typing import Any, cast

import pytest
import timm
import torch
from timm.layers.norm_act import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from epmvg.models.factory import create_model
from epmvg.models.norms import fuse_norms


def frozen(network: nn.Module) -> nn.Module:
    """Freeze the batch norms of a network, each with random statistics and weights."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                assert tensor is not None
                nn.init.normal_(tensor, std=0.3)
    return cast(nn.Module, cast(Any, freeze_batch_norm_2d)(network.eval()).eval())


def norms(network: nn.Module) -> int:
    return sum(type(module).__name__.startswith("FrozenBatchNorm") for module in network.modules())


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("resnet10t", 1),  # its stem ends in another module than the norm
        ("resnet50", 0),
        ("tf_efficientnet_lite0", 0),  # activations inside norms, TensorFlow's padding
        ("mobilenetv3_small_050", 0),
        ("densenet121", 62),  # norms before convolutions
    ],
)
def test_fusion_changes_no_output(name: str, left: int) -> None:
    torch.manual_seed(0)
    network = frozen(timm.create_model(name, features_only=True))
    image = torch.rand(2, 3, 65, 66)
    fused = fuse_norms(network)
    assert norms(network) > norms(fused) == left
    for before, after in zip(network(image), fused(image), strict=True):
        torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-4 * before.abs().max().item())


class TwoUses(nn.Module):
    """A convolution whose output is also used beside its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.conv(x)
        return [x + self.norm(x)]


def test_a_convolution_with_two_uses_is_not_fused() -> None:
    torch.manual_seed(0)
    network = frozen(TwoUses())
    assert fuse_norms(network) is network and isinstance(network.norm, FrozenBatchNorm2d)


def test_norms_of_a_model_never_train() -> None:
    """Neither their statistics nor their weights, in training mode either; activations of timm's norms stay."""
    encoder = create_model("tiny-resnet").train().visual_encoder
    assert norms(encoder) > 8 and not any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    encoder.backbone_features(torch.rand(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in encoder.named_buffers())
    assert not {name for name, _ in encoder.named_parameters() if ".bn" in name}
