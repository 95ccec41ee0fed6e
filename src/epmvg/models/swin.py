"""Swin transformer with QRNet's query modulation and multiscale fusion; TransVG-Swin is the same without modulation."""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import Any, cast

import torch
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.swin_transformer import shifted_window_attention

from epmvg.core.types import InputError
from epmvg.models.presets import Gates
from epmvg.models.query_modulation import QueryGate
from epmvg.models.visual_encoder import BaseVisualEncoder, create_backbone

_STRIDES = (4, 8, 16, 32, 64)
"""Of the four stages, and of every second token of the last."""


class SwinEncoder(BaseVisualEncoder):
    """Swin's four stages, each with a query gate, and QRNet's neck from coarse to fine and back.

    Args:
        backbone: timm name of a Swin transformer with 4 stages.
        image_size: S, side of the input in pixels, a multiple of 32.
        query_width: Q, width of the text encoder.
        backbone_kwargs: arguments of `timm.create_model` (`embed_dim`, `depths`, `num_heads`).
        strides: of the feature levels that become tokens, out of 4, 8, 16, 32 and 64.
        width: C, of the neck.
        gates: `off`, or how the first layer of channel gates is initialized (`QueryGate`).
        drop_path: stochastic depth of the last block.
        frozen, mean, std: as for `VisualEncoder`.

    Raises:
        InputError: the backbone is no Swin of timm, or image_size or strides do not fit it.
    """

    def __init__(
        self,
        backbone: str,
        *,
        image_size: int,
        query_width: int,
        backbone_kwargs: dict[str, Any],
        strides: Sequence[int],
        width: int,
        gates: Gates,
        drop_path: float,
        frozen: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        swin = _create_swin(backbone, image_size, strides, drop_path, backbone_kwargs)
        super().__init__(swin, width, strides, mean, std)
        channels = [int(stage["num_chs"]) for stage in cast(Any, swin.feature_info)]
        self.query_aware = gates != "off"
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in channels)
        self.lateral = nn.ModuleList(nn.Linear(c, width) for c in channels)
        for layer in self.lateral:
            nn.init.xavier_uniform_(cast(nn.Linear, layer).weight)
            nn.init.zeros_(cast(nn.Linear, layer).bias)
        self.scale_embed = nn.Embedding(len(_STRIDES), width)
        self.num_downsamplings = min(3, _STRIDES.index(self.strides[-1]))  # of the neck: those whose output is used
        self.stage_gates, self.neck_gates = nn.ModuleList(), nn.ModuleList()
        if gates != "off":
            self.stage_gates.extend(QueryGate(query_width, c, gates) for c in channels)
            self.neck_gates.extend(QueryGate(query_width, width, gates) for _ in range(self.num_downsamplings))
            for layer in self.stage_gates.modules():
                if isinstance(layer, nn.Linear):  # as published; those of the neck keep torch's initialization
                    nn.init.trunc_normal_(layer.weight, std=0.02)
                    nn.init.zeros_(layer.bias)
        self.freeze(frozen)
        self.train()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the input of each Swin block in training, and compute it again in the backward pass."""
        cast(SwinTransformer, self.backbone).set_grad_checkpointing(enable)

    def backbone_features(self, images: Tensor, image_mask: Tensor) -> Tensor:
        """Return the first stage's features [I, S/4, S/4, C']: what comes before the first gate."""
        swin = cast(Any, self.backbone)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features: Tensor = swin.layers[0](swin.patch_embed(self.normalize_pixels(images, image_mask)))
        return features

    def visual_tokens(
        self,
        features: Tensor,
        image_mask: Tensor,
        query: Tensor | None = None,
        image_index: Tensor | None = None,
        *,
        num_unpadded: int | None = None,
    ) -> Tensor:
        """Return tokens [I, N, C], or [P, N, C] with gates."""
        x, levels = features, []
        for number, stage in enumerate(cast(Any, self.backbone).layers):
            x = x if number == 0 else stage(x)
            if self.query_aware:
                assert query is not None and image_index is not None
                x = self.stage_gates[number](x, query, image_index)
                image_index = torch.arange(x.shape[0], device=x.device)  # from here on one map per phrase
            levels.append(self.lateral[number](self.norms[number](x)))  # [P, S/4, S/4, C] to [P, S/32, S/32, C]
        for fine in (2, 1, 0):
            levels[fine] = levels[fine] + _upsample(levels[fine + 1])
        for fine in range(self.num_downsamplings):
            x = self.neck_gates[fine](levels[fine], query, image_index) if self.query_aware else levels[fine]
            levels[fine + 1] = levels[fine + 1] + _downsample(x)
        levels.append(levels[3][:, ::2, ::2])
        tokens = []
        for stride in self.strides:
            number = _STRIDES.index(stride)
            tokens.append(levels[number].flatten(1, 2) + self.scale_embed.weight[number])
        return torch.cat(tokens, 1)

    def pretrained_modules(self) -> dict[str, list[nn.Module]]:
        return {"backbone": [self.backbone, self.norms], "encoder": [self.lateral]}


def _create_swin(
    backbone: str, image_size: int, strides: Sequence[int], drop_path: float, settings: dict[str, Any]
) -> SwinTransformer:
    """Create timm's Swin transformer without its classifier, with windows padded before they are shifted."""
    if image_size % 32:
        raise InputError(f"model.image_size={image_size} does not fit a Swin transformer. Use a multiple of 32.")
    if absent := set(strides) - set(_STRIDES):
        raise InputError(f"model.visual_encoder.strides has {min(absent)}. Use {', '.join(map(str, _STRIDES))}.")
    if not backbone.startswith("swin_"):
        raise InputError(f"model.visual_encoder.backbone={backbone} is not a Swin transformer. Use a swin_... of timm.")
    settings = {"img_size": image_size, "num_classes": 0, "drop_path_rate": drop_path} | settings
    swin = create_backbone(backbone, always_partition=True, **settings)
    assert isinstance(swin, SwinTransformer)
    swin.norm = nn.Identity()  # the classifier's; each stage has a norm of its own
    for block in swin.modules():
        if isinstance(block, SwinTransformerBlock):
            cast(Any, block)._attn = MethodType(_window_attention, block)
    return swin


def _window_attention(block: SwinTransformerBlock, x: Tensor) -> Tensor:
    """Attend within windows of x [B, H, W, C], padded before it is shifted, as the published weights were trained.

    timm shifts first. Deterministic in training: none of these networks has dropout in its attention.
    """
    attention = cast(Any, block.attn)
    out: Tensor = shifted_window_attention(
        x,
        attention.qkv.weight,
        attention.proj.weight,
        attention._get_rel_pos_bias(),
        list(block.window_size),
        attention.num_heads,
        list(block.shift_size),
        qkv_bias=attention.qkv.bias,
        proj_bias=attention.proj.bias,
    )
    return out


def _upsample(x: Tensor) -> Tensor:
    """Repeat each token of x [P, H, W, C] in a 2 x 2 square -> [P, 2H, 2W, C]."""
    return F.interpolate(x.permute(0, 3, 1, 2), scale_factor=2.0).permute(0, 2, 3, 1)


def _downsample(x: Tensor) -> Tensor:
    """Average x [P, H, W, C] over 2 x 2 squares -> [P, H/2, W/2, C]."""
    return F.avg_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
