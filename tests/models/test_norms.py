"""Frozen norms fold into convolutions without changing an answer, and stay apart where they cannot."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from epmvg.models.norms import FoldedConv, FrozenBatchNorm, PaddedConv, bake_norms, freeze_norms


def lively(network: nn.Module) -> nn.Module:
    """Give every batch norm statistics and an affine of its own."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                assert tensor is not None
                nn.init.normal_(tensor, std=0.3)
    return network.eval()


@pytest.mark.parametrize(
    "name", ["resnet10t", "resnet50", "tf_efficientnet_lite0", "mobilenetv3_small_050", "densenet121"]
)
def test_folding_changes_no_answer(name: str) -> None:
    torch.manual_seed(0)
    network = lively(timm.create_model(name, features_only=True))
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before = network(image)
        freeze_norms(network)
        after = network(image)
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * a.abs().max().item())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_weights_keep_their_names_and_their_gradients() -> None:
    torch.manual_seed(0)
    plain, folded = (lively(timm.create_model("resnet10t", features_only=True)) for _ in range(2))
    folded.load_state_dict(plain.state_dict())
    freeze_norms(folded)
    assert sum(isinstance(module, FoldedConv) for module in folded.modules()) > 8
    assert {n for n in plain.state_dict() if "num_batches" not in n} == set(folded.state_dict())
    image = torch.rand(2, 3, 64, 64)
    for network in (plain, folded):
        network(image)[-1].square().mean().backward()
    own = dict(folded.named_parameters())
    for name, parameter in plain.named_parameters():
        if name in own:
            assert parameter.grad is not None
            torch.testing.assert_close(own[name].grad, parameter.grad, rtol=1e-3, atol=1e-5)


class TakenTwice(nn.Module):
    """A convolution whose answer goes around its norm as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.conv(x)
        return [x + self.norm(x)]


def test_an_answer_taken_twice_is_not_folded() -> None:
    torch.manual_seed(0)
    network = lively(TakenTwice())
    image = torch.rand(1, 3, 64, 64)
    before = network(image)[0]
    freeze_norms(network)
    assert isinstance(network.conv, nn.Conv2d) and isinstance(network.norm, FrozenBatchNorm)
    torch.testing.assert_close(network(image)[0], before)


@pytest.mark.parametrize("side", [64, 65, 66])
def test_baked_padding_is_tensorflows(side: int) -> None:
    torch.manual_seed(0)
    network = lively(timm.create_model("tf_efficientnet_lite0", features_only=True))
    image = torch.rand(2, 3, side, side + 2)
    with torch.no_grad():
        freeze_norms(network)
        before = network(image)
        bake_norms(network, padding=True)
        after = network(image)
    assert sum(isinstance(module, PaddedConv) for module in network.modules()) == 5  # a stride of 2 each
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * a.abs().max().item())
