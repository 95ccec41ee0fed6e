"""Fusion of frozen batch norms into the convolutions before them, for inference."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import cast

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import FrozenBatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import FrozenBatchNorm2d

_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
"""Exact types: a subclass may compute its weight from its parameters."""


@torch.no_grad()
def fuse_norms(backbone: nn.Module) -> nn.Module:
    """Return a copy of a timm feature extractor whose frozen batch norms are part of the convolutions before them.

    The activation that timm keeps inside a norm takes the norm's place. A backbone whose outputs would change, since
    the output of a convolution is also used elsewhere, is returned as it is.
    """
    fused = copy.deepcopy(backbone).eval()
    for parent in list(fused.modules()):
        for (name, conv), (norm_name, norm) in pairwise(list(parent.named_children())):
            if type(conv) in _CONVOLUTIONS and isinstance(norm, (FrozenBatchNorm2d, FrozenBatchNormAct2d)):
                setattr(parent, name, fuse_conv_bn_eval(cast(nn.Conv2d, conv), cast(nn.BatchNorm2d, norm)))
                setattr(parent, norm_name, getattr(norm, "act", nn.Identity()))
    like = next(backbone.parameters())
    probe = torch.rand(1, 3, 64, 64, generator=torch.Generator("cpu").manual_seed(0), device="cpu").to(like)
    outputs = zip(backbone(probe), fused(probe), strict=True)
    return fused if all(_is_close(before, after) for before, after in outputs) else backbone


def _is_close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-3, atol=1e-4 * a.abs().max().item())
