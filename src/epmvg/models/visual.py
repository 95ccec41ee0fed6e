"""Visual branch: a timm backbone, a 1x1 projection and a transformer encoder over its map (sec. 3.1, Visual Branch)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epmvg.models.transformer import Encoder, sine_position

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ConvBranch(nn.Module):
    """Any timm CNN, its batch norms frozen, followed by DETR's encoder.

    Args:
        backbone: timm name.
        strides: which maps of the backbone to use; coarser ones are resized to the finest and concatenated.
        width, layers, heads, hidden, dropout: of the encoder; 0 layers leave the projected map as it is.
        frozen: names (prefixes) of backbone modules that never train; "all" freezes the whole backbone,
            which makes its maps storable.
        mean, std: of the pixels, RGB in 0..1.

    The work splits in two so that a frozen backbone's answers can be stored: `maps` (image alone) and `forward`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str,
        *,
        strides: Sequence[int],
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        dropout: float,
        frozen: Sequence[str] = (),
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        reductions = cast(Any, timm.create_model(backbone, features_only=True)).feature_info.reduction()
        self.backbone: nn.Module = timm.create_model(
            backbone, features_only=True, out_indices=[reductions.index(stride) for stride in sorted(strides)]
        )
        self.norms = [m for m in self.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
        self.stride = min(strides)
        self.channels: int = sum(cast(Any, self.backbone).feature_info.channels())
        self.width = width
        self.input_proj = nn.Conv2d(self.channels, width, 1)
        self.encoder = Encoder(layers, width, heads, hidden, dropout)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.frozen = "all" in frozen
        for name, parameter in self.backbone.named_parameters():
            if self.frozen or name.startswith(tuple(frozen)):
                parameter.requires_grad_(False)
        for norm in self.norms:
            norm.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> ConvBranch:
        super().train(mode)
        for norm in self.norms:  # its statistics are ImageNet's for good: batches are too small for better ones
            norm.eval()
        if self.frozen:
            self.backbone.eval()
        return self

    def maps(self, image: Tensor, pad: Tensor) -> Tensor:
        """Return the backbone's map [I, C, S/stride, S/stride] of image [I, 3, S, S] in 0..1; padding is the mean."""
        pixels = ((image - self.mean) / self.std).masked_fill(pad[:, None], 0.0)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            finest, *coarser = self.backbone(pixels.contiguous(memory_format=torch.channels_last))
        size = finest.shape[-2:]
        return torch.cat([finest, *(F.interpolate(m, size=size, mode="bilinear") for m in coarser)], 1)

    def forward(self, image: Tensor, pad: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode images -> visual tokens [I, N, C] row by row, and their pad bool [I, H, W].

        Args:
            image: float [I, 3, S, S]; pad: bool [I, S, S].
            features: what `maps` answered for these images, if stored.
        """
        features = self.maps(image, pad) if features is None else features
        tokens = self.input_proj(features).flatten(2).transpose(1, 2)  # [I, N, C]
        token_pad = pad[:, :: self.stride, :: self.stride]  # [I, H, W], the pixel at each token's corner
        if self.encoder.layers:
            position = sine_position(token_pad, self.width).flatten(1, 2)
            tokens = self.encoder(tokens, position.to(tokens.dtype), token_pad.flatten(1))
        return tokens, token_pad
