"""Batch norms that never change, folded into the convolutions before them.

Folding is exact up to rounding and halves what a training step must remember: a convolution's backward pass does not
need its output, a norm's does.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.layers.conv2d_same import Conv2dSame, conv2d_same
from torch import Tensor, nn
from torch.nn import functional as F


class FrozenBatchNorm(nn.Module):
    """A batch norm that keeps its statistics and its affine for good: batches are too small for better ones.

    All four are buffers, as in DETR and TransVG; an activation that timm fused into the norm stays.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps = norm.eps
        self.act = cast(nn.Module, norm.act) if hasattr(norm, "act") else nn.Identity()
        self.folded = False
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach().clone())

    def affine(self) -> tuple[Tensor, Tensor]:
        """Return scale and shift [C], so that the norm is x * scale + shift."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        if not self.folded:
            x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        out: Tensor = self.act(x)
        return out


class FoldedConv(nn.Module):
    """A convolution that applies the frozen norm after it; its parameter keeps its name and published value."""

    def __init__(self, convolution: nn.Conv2d, norm: FrozenBatchNorm) -> None:
        super().__init__()
        self.weight = convolution.weight
        self.same = isinstance(convolution, Conv2dSame)
        self.place: Any = (convolution.stride, convolution.padding, convolution.dilation, convolution.groups)
        self.norm = (norm,)  # a tuple, so that it is not registered twice

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.norm[0].affine()
        convolve = conv2d_same if self.same else F.conv2d
        return convolve(x, self.weight * scale[:, None, None, None], shift, *self.place)


class BakedConv(nn.Module):
    """A `FoldedConv` whose product is computed once: for networks that never train again."""

    def __init__(self, folded: FoldedConv) -> None:
        super().__init__()
        scale, shift = folded.norm[0].affine()
        weight = (folded.weight * scale[:, None, None, None]).contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(shift, requires_grad=False)
        self.same, self.place = folded.same, folded.place

    def forward(self, x: Tensor) -> Tensor:
        convolve = conv2d_same if self.same else F.conv2d
        return convolve(x, self.weight, self.bias, *self.place)


class PaddedConv(BakedConv):
    """A `BakedConv` with TensorFlow's padding, whose odd row and column are zeros in its kernel.

    A stride of 2 pads an even map more on the right and below; torch copies the map for that, which takes longer than
    the convolution itself. A kernel with zeros above and on the left answers the same with as much padding all round.
    """

    def __init__(self, folded: FoldedConv) -> None:
        super().__init__(folded)
        (self.step, _), _, dilation, groups = self.place
        room = max(self.weight.shape[-1] - self.step, 0)
        self.odd = room % 2
        weight = F.pad(self.weight, (self.odd, 0, self.odd, 0)).contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.padded: Any = (self.step, (room + 1) // 2, dilation, groups)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % self.step or x.shape[-2] % self.step:
            return cast(Tensor, conv2d_same(x, self.weight[..., self.odd :, self.odd :], self.bias, *self.place))
        return F.conv2d(x, self.weight, self.bias, *self.padded)

    @staticmethod
    def fits(folded: FoldedConv) -> bool:
        """Say whether a convolution pads as TensorFlow does, is square, and has no holes."""
        (down, across), _, dilation, _ = folded.place
        rows, columns = folded.weight.shape[2:]
        return folded.same and down == across and rows == columns and dilation == (1, 1)


@torch.no_grad()
def bake_norms(network: nn.Module, *, padding: bool = False) -> None:
    """Multiply folded norms into the weights of their convolutions for good, in place.

    `padding` bakes the padding too; the runtimes of exported graphs do better without.
    """
    for name, module in _found(network, FoldedConv):
        folded = cast(FoldedConv, module)
        baked = PaddedConv if padding and PaddedConv.fits(folded) else BakedConv
        _replace(network, name, baked(folded))


def freeze_norms(network: nn.Module) -> None:
    """Replace every batch norm inside a network by a frozen one, folded where a convolution feeds it, in place."""
    for name, norm in _found(network, nn.BatchNorm2d):
        _replace(network, name, FrozenBatchNorm(cast(nn.BatchNorm2d, norm)))
    fold_norms(network)


@torch.no_grad()
def fold_norms(network: nn.Module) -> None:
    """Fold each frozen norm into the convolution whose answer it takes, unless that changes the network's answers."""
    probe = torch.rand(1, 3, 64, 64, generator=torch.Generator("cpu").manual_seed(0), device="cpu", dtype=torch.float32)
    device = next(network.parameters()).device
    if device.type == "meta":
        return
    pairs = _pairs(network, probe)
    before = network(probe)
    originals = {name: network.get_submodule(name) for name in pairs}
    for name, norm in pairs.items():
        _replace(network, name, FoldedConv(cast(nn.Conv2d, originals[name]), norm))
        norm.folded = True
    after = network(probe)
    if not all(map(_alike, before, after)):
        for name, norm in pairs.items():  # some convolution's answer is also taken elsewhere
            _replace(network, name, originals[name])
            norm.folded = False


def _pairs(network: nn.Module, probe: Tensor) -> dict[str, FrozenBatchNorm]:
    """Watch one pass and return, by a convolution's name, the norm that takes its answer."""
    answers: dict[int, str] = {}
    pairs: dict[str, FrozenBatchNorm] = {}
    kept: list[Tensor] = []  # so that no two tensors share an id
    hooks = []

    def answered(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...], answer: Tensor) -> None:
            answers[id(answer)] = name
            kept.append(answer)

        return hook

    def taken(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        name = answers.get(id(given[0]))
        if name is not None:
            pairs[name] = cast(FrozenBatchNorm, module)

    for name, module in _found(network, nn.Conv2d):
        if cast(nn.Conv2d, module).bias is None:
            hooks.append(module.register_forward_hook(answered(name)))
    for _, module in _found(network, FrozenBatchNorm):
        hooks.append(module.register_forward_pre_hook(taken))
    network(probe)
    for hook in hooks:
        hook.remove()
    return pairs


def _alike(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-3, atol=1e-4 * a.abs().max().item())


def _found(network: nn.Module, kind: type[nn.Module]) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in network.named_modules() if isinstance(module, kind)]


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)
