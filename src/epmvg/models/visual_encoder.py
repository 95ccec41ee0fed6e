"""Visual encoder: a CNN, a 1x1 convolution and DETR's encoder, from images to visual tokens (sec. 3.1, Visual Branch).

The base class states what the grounder needs of any visual encoder; `swin.SwinEncoder` is the other one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, cast

import timm
import torch
from timm.layers.norm_act import freeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn import functional as F

from epmvg.core.types import InputError
from epmvg.models.freezing import freeze
from epmvg.models.norms import fuse_norms
from epmvg.models.transformer import TransformerEncoder, gather_tokens, sine_position, unpadded_indices


class BaseVisualEncoder(nn.Module):
    """Images to visual tokens in two steps, of which only the second may depend on a phrase.

    Attributes:
        backbone: the part with pretrained weights.
        width: C, channels of a visual token.
        strides: of the feature levels that tokens are made of, finest first; their tokens are concatenated.
        query_aware: whether tokens depend on the phrase.
        frozen: whether nothing that `backbone_features` computes trains, so that they can be cached.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, width: int, strides: Sequence[int], mean: Any, std: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.width = width
        self.strides = tuple(sorted(strides))
        self.frozen = self.query_aware = False
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def backbone_features(self, images: Tensor, image_mask: Tensor) -> Tensor:
        """Compute what no phrase is needed for, from images [I, 3, S, S] in 0..1 and image_mask bool [I, S, S]."""
        raise NotImplementedError

    def visual_tokens(
        self,
        features: Tensor,
        image_mask: Tensor,
        query: Tensor | None = None,
        image_index: Tensor | None = None,
        *,
        num_unpadded: int | None = None,
    ) -> Tensor:
        """Compute visual tokens from the backbone's features.

        Args:
            features: as `backbone_features` returns them.
            image_mask: bool [I, S, S], True at padding.
            query: float [P, Q], [CLS] of each phrase; used by a query-aware encoder only.
            image_index: int64 [P], the image of each query.
            num_unpadded: as `Grounder.num_unpadded`.

        Returns:
            float [I, N, C]; [P, N, C] of a query-aware encoder.
        """
        raise NotImplementedError

    def pretrained_modules(self) -> dict[str, list[nn.Module]]:
        """Return the modules whose weights may be pretrained, by parameter group: `backbone` and `encoder`."""
        raise NotImplementedError

    def fuse_norms(self) -> None:
        """Fuse the backbone's batch norms into its convolutions: faster, and only for inference."""

    def token_masks(self, image_mask: Tensor) -> list[Tensor]:
        """Return the mask bool [I, H, W] of each feature level, True at padding."""
        return [downsample_mask(image_mask, stride) for stride in self.strides]

    def grid_sizes(self, image_size: int) -> list[int]:
        """Return the side of each feature level in tokens, for a square input of `image_size` pixels."""
        return [math.ceil(image_size / stride) for stride in self.strides]

    def num_tokens(self, image_size: int) -> int:
        """Return N, the number of visual tokens of a square input of `image_size` pixels."""
        return sum(side**2 for side in self.grid_sizes(image_size))

    def freeze(self, frozen: Sequence[str]) -> None:
        """Stop parts of the backbone from training (`freezing.freeze`)."""
        self.frozen = freeze(self.backbone, frozen, "model.visual_encoder.frozen")

    def train(self, mode: bool = True) -> BaseVisualEncoder:
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def normalize_pixels(self, images: Tensor, image_mask: Tensor) -> Tensor:
        """Normalize by mean and standard deviation; padding becomes the mean."""
        return ((images - self.mean) / self.std).masked_fill(image_mask[:, None], 0.0)


class VisualEncoder(BaseVisualEncoder):
    """Any timm CNN with frozen batch norms, followed by DETR's encoder.

    Args:
        backbone: timm name.
        strides: of the feature levels to use; coarser ones are resized to the finest and concatenated with it.
        width, layers, heads, dim_feedforward, dropout: of the encoder; 0 layers leave the projected features as they
            are.
        frozen: names of backbone modules that never train, or "all".
        mean, std: of the pixels, RGB in 0..1.

    Raises:
        InputError: timm cannot build the backbone, or it has no feature level of a stride.
    """

    def __init__(
        self,
        backbone: str,
        *,
        strides: Sequence[int],
        width: int,
        layers: int,
        heads: int,
        dim_feedforward: int,
        dropout: float,
        frozen: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        reductions = _feature_strides(backbone)
        if absent := set(strides) - set(reductions):
            known = ", ".join(map(str, sorted(set(reductions))))
            raise InputError(f"model.visual_encoder.strides has {min(absent)}, and {backbone} has {known}. Use these.")
        levels = [reductions.index(stride) for stride in sorted(strides)]
        network = create_backbone(backbone, features_only=True, out_indices=levels)
        super().__init__(cast(Any, freeze_batch_norm_2d)(network), width, [min(strides)], mean, std)
        self.input_proj = nn.Conv2d(sum(cast(Any, network).feature_info.channels()), width, 1)
        self.encoder = TransformerEncoder(layers, width, heads, dim_feedforward, dropout)
        self.freeze(frozen)
        self.train()

    def backbone_features(self, images: Tensor, image_mask: Tensor) -> Tensor:
        """Return the feature map z [I, C', S/stride, S/stride]."""
        pixels = self.normalize_pixels(images, image_mask).contiguous(memory_format=torch.channels_last)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            finest, *coarser = self.backbone(pixels)
        size = finest.shape[-2:]
        return torch.cat([finest, *(F.interpolate(level, size=size, mode="bilinear") for level in coarser)], 1)

    def visual_tokens(
        self,
        features: Tensor,
        image_mask: Tensor,
        query: Tensor | None = None,
        image_index: Tensor | None = None,
        *,
        num_unpadded: int | None = None,
    ) -> Tensor:
        """Return the visual embedding f_v [I, N, C]; padded tokens are 0 after the encoder."""
        tokens: Tensor = self.input_proj(features).flatten(2).transpose(1, 2)  # z' as a sequence
        if not self.encoder.layers:
            return tokens
        (grid_mask,) = self.token_masks(image_mask)
        position = sine_position(grid_mask, self.width).flatten(1, 2).to(tokens.dtype)
        mask = grid_mask.flatten(1)  # [I, N]
        kept = unpadded_indices(mask, num_unpadded)  # [I, n]: padding is never attended to
        encoded = self.encoder(gather_tokens(tokens, kept), gather_tokens(position, kept), mask.gather(1, kept))
        index = kept[..., None].expand(-1, -1, self.width)
        return torch.zeros_like(tokens, dtype=encoded.dtype).scatter(1, index, encoded)

    def pretrained_modules(self) -> dict[str, list[nn.Module]]:
        return {"backbone": [self.backbone], "encoder": [self.input_proj, self.encoder]}

    def fuse_norms(self) -> None:
        self.backbone = fuse_norms(self.backbone)


@functools.lru_cache
def _feature_strides(backbone: str) -> list[int]:
    """Return the strides of all feature levels."""
    with torch.device("meta"):
        strides: list[int] = cast(Any, create_backbone(backbone, features_only=True)).feature_info.reduction()
    return strides


def create_backbone(name: str, **settings: Any) -> nn.Module:
    """Create a backbone with random weights by its timm name.

    Raises:
        InputError: timm has none of this name, or not with these settings.
    """
    try:
        return timm.create_model(name, **settings)
    except (RuntimeError, TypeError, ValueError, AttributeError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"timm cannot build model.visual_encoder.backbone={name} ({reason}). Use another.") from error


def downsample_mask(image_mask: Tensor, stride: int) -> Tensor:
    """Return which tokens of a stride are padding; at least one of each image is not.

    The pixel at a token's corner decides, as in the published models. Where an image lies between all corners, every
    token that holds a pixel of it is unpadded, and the first token where there is no image at all.

    Args:
        image_mask: bool [I, S, S], True at padding.
        stride: of the tokens, in pixels.

    Returns:
        bool [I, H, W] with H = W = ceil(S / stride).
    """
    mask = image_mask[:, ::stride, ::stride]
    has_image = F.max_pool2d((~image_mask).float()[:, None], stride, ceil_mode=True)[:, 0] > 0
    mask = mask & ~(has_image & _all_padded(mask))
    first = torch.arange(mask[0].numel(), device=mask.device).view(mask.shape[1:]) == 0
    return mask & ~(first & _all_padded(mask))


def _all_padded(mask: Tensor) -> Tensor:
    """Whether all tokens of a mask [I, H, W] are padding, bool [I, 1, 1]."""
    return mask.flatten(1).all(1)[:, None, None]
