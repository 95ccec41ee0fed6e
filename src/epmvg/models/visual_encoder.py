"""Visual branches: from a picture on its canvas to visual tokens (sec. 3.1, Visual Branch).

`ConvBranch` is TransVG's (a CNN and DETR's encoder), `SwinBranch` is QRNet's, with its query-aware gates or without.
A branch works in two steps: `maps` needs the image alone, and `tokens` may need a phrase's query.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import timm
import torch
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, window_partition, window_reverse
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from epmvg.core.types import InputError
from epmvg.models.freezing import freeze
from epmvg.models.norms import freeze_norms
from epmvg.models.query_modulation import ChannelGate, QueryGate
from epmvg.models.transformer import Encoder, content_first, sine_position

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def token_mask(image_mask: Tensor, stride: int) -> Tensor:
    """Return which tokens of a stride are padding, at least one of each image being content.

    The pixel at a token's corner decides, as in the published models. Where an image lies between all corners, every
    token that holds a pixel of it is content, and the first token where there is no image at all.

    Args:
        pad: bool [I, S, S], True where there is no image.
        stride: of the tokens, in pixels.

    Returns:
        bool [I, H, W] with H = W = ceil(S / stride).
    """
    level = image_mask[:, ::stride, ::stride]
    touched = F.max_pool2d((~image_mask).float()[:, None], stride, ceil_mode=True)[:, 0] > 0
    level = level & ~(touched & _nothing(level))
    first = torch.arange(level[0].numel(), device=image_mask.device).view(level.shape[1:]) == 0
    return level & ~(first & _nothing(level))


def _nothing(level: Tensor) -> Tensor:
    """Whether all tokens of a map [I, H, W] are padding, bool [I, 1, 1]."""
    return level.flatten(1).all(1)[:, None, None]


class VisualBranch(nn.Module):
    """What the grounder asks of a visual branch.

    Attributes:
        backbone: the part that arrives pretrained.
        width: C, of a visual token.
        strides: of the token maps, finest first; the tokens of all of them follow each other.
        query_aware: whether tokens depend on the phrase.
        frozen: whether nothing that `maps` computes ever trains, which makes its answers storable.
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

    def maps(self, image: Tensor, image_mask: Tensor) -> Tensor:
        """Answer what no phrase is needed for, from image float [I, 3, S, S] in 0..1 and pad bool [I, S, S]."""
        raise NotImplementedError

    def tokens(
        self, maps: Tensor, image_mask: Tensor, query: Tensor | None = None, image_index: Tensor | None = None
    ) -> Tensor:
        """Turn maps into tokens [I, N, C]; a query-aware branch into [P, N, C], for queries [P, Q] of images `owner`.

        `pad` is bool [I, S, S], as for `maps`.
        """
        raise NotImplementedError

    def trained(self) -> dict[str, list[nn.Module]]:
        """Return the modules that arrive pretrained, by parameter group: `backbone` and `encoder`."""
        raise NotImplementedError

    def pads(self, image_mask: Tensor) -> list[Tensor]:
        """Return pad bool [I, H, W] of each token map (`token_mask`)."""
        return [token_mask(image_mask, stride) for stride in self.strides]

    def places(self, image_size: int) -> int:
        """Return N, the number of visual tokens on a canvas."""
        return sum(math.ceil(image_size / stride) ** 2 for stride in self.strides)

    def freeze(self, frozen: Sequence[str] | str) -> None:
        """Stop parts of the backbone from training (`freezing.freeze`)."""
        self.frozen = freeze(self.backbone, frozen, "model.visual.frozen")

    def train(self, mode: bool = True) -> VisualBranch:
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def pixels(self, image: Tensor, image_mask: Tensor) -> Tensor:
        """Normalise pixels; padding becomes the mean."""
        return ((image - self.mean) / self.std).masked_fill(image_mask[:, None], 0.0)


class ConvBranch(VisualBranch):
    """Any timm CNN, its batch norms frozen, followed by DETR's encoder.

    Args:
        backbone: timm name.
        strides: which maps of the backbone to use; coarser ones are resized to the finest and concatenated.
        width, layers, heads, hidden, dropout: of the encoder; 0 layers leave the projected map as it is.
        frozen: names of backbone modules that never train, or "all"; a text is one name.
        mean, std: of the pixels, RGB in 0..1.
    """

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
        frozen: Sequence[str] | str = (),
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        reductions = cast(Any, _timm(backbone, features_only=True)).feature_info.reduction()
        if absent := set(strides) - set(reductions):
            known = ", ".join(map(str, sorted(set(reductions))))
            raise InputError(
                f"model.visual.strides has {min(absent)}, and {backbone} has maps of {known}: give of these."
            )
        indices = [reductions.index(stride) for stride in sorted(strides)]
        network = _timm(backbone, features_only=True, out_indices=indices)
        super().__init__(network, width, [min(strides)], mean, std)
        freeze_norms(self.backbone)
        self.input_proj = nn.Conv2d(sum(cast(Any, network).feature_info.channels()), width, 1)
        self.encoder = Encoder(layers, width, heads, hidden, dropout)
        self.freeze(frozen)
        self.train()

    def maps(self, image: Tensor, image_mask: Tensor) -> Tensor:
        """Return the backbone's map [I, C', S/stride, S/stride]."""
        pixels = self.pixels(image, image_mask).contiguous(memory_format=torch.channels_last)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            finest, *coarser = self.backbone(pixels)
        size = finest.shape[-2:]
        return torch.cat([finest, *(F.interpolate(m, size=size, mode="bilinear") for m in coarser)], 1)

    def tokens(
        self, maps: Tensor, image_mask: Tensor, query: Tensor | None = None, image_index: Tensor | None = None
    ) -> Tensor:
        tokens: Tensor = self.input_proj(maps).flatten(2).transpose(1, 2)  # [I, N, C]
        if self.encoder.layers:
            (level,) = self.pads(image_mask)
            position = sine_position(level, self.width).flatten(1, 2).to(tokens.dtype)
            hidden = level.flatten(1)  # [I, N]
            keep = content_first(hidden)  # [I, n]: nobody attends to the others
            index = keep[..., None].expand(-1, -1, self.width)
            kept = self.encoder(tokens.gather(1, index), position.gather(1, index), hidden.gather(1, keep))
            tokens = torch.zeros_like(tokens, dtype=kept.dtype).scatter(1, index, kept)
        return tokens

    def trained(self) -> dict[str, list[nn.Module]]:
        return {"backbone": [self.backbone], "encoder": [self.input_proj, self.encoder]}


class SwinBranch(VisualBranch):
    """Swin and QRNet's multiscale neck, query-aware or not; TransVG-Swin is the same with the gates off.

    One map of tokens for each of `strides`; beyond the backbone's 32, a coarser map is every second place of the last.

    Args:
        backbone: timm name of a Swin transformer with 4 stages.
        shape: numbers of the backbone that differ from the named one (`embed_dim`, `depths`, `num_heads`).
        strides: of the token maps, out of 4, 8, 16, 32 and 64.
        width: C, of the neck.
        gates: `off`, or how the channel gates start (`QueryGate`).
        pool: what the gates pool over: the whole `input`, padding included, as published, or the `content`.
        query: Q, width of the linguistic branch.
        drop_path: stochastic depth of the last block.
        frozen: names of backbone modules that never train, or "all"; a text is one name.
        mean, std: of the pixels, RGB in 0..1.

    Attributes:
        checkpointed: whether a training step keeps only the input of each of Swin's blocks, as `Encoder.checkpointed`.
    """

    def __init__(
        self,
        backbone: str,
        *,
        image_size: int,
        query: int,
        shape: dict[str, Any] | None = None,
        strides: Sequence[int],
        width: int,
        gates: Literal["off", "as_published", "repaired"] = "repaired",
        pool: Literal["input", "content"] = "input",
        drop_path: float = 0.2,
        frozen: Sequence[str] | str = (),
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        if image_size % 32:
            raise InputError(f"canvas={image_size} does not fit a Swin: give a multiple of 32.")
        if absent := set(strides) - set(_NECK_STRIDES):
            raise InputError(f"model.visual.strides has {min(absent)}: give of {', '.join(map(str, _NECK_STRIDES))}.")
        if not backbone.startswith("swin_"):
            raise InputError(f"model.visual.backbone={backbone} is no Swin transformer of timm: give a swin_... name.")
        swin = _timm(
            backbone,
            img_size=image_size,
            num_classes=0,
            drop_path_rate=drop_path,
            always_partition=True,
            **(shape or {}),
        )
        assert isinstance(swin, SwinTransformer)
        swin.norm = nn.Identity()  # the classifier's; each stage has a norm of its own below
        super().__init__(swin, width, strides, mean, std)
        channels = [int(stage["num_chs"]) for stage in swin.feature_info]
        self.query_aware = gates != "off"
        self.pool = pool
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in channels)
        self.lateral = nn.ModuleList(nn.Linear(c, width) for c in channels)
        for layer in self.lateral:
            nn.init.xavier_uniform_(cast(nn.Linear, layer).weight)
            nn.init.zeros_(cast(nn.Linear, layer).bias)
        self.scale_embed = nn.Embedding(len(_NECK_STRIDES), width)
        self.checkpointed = False
        self.climbs = min(3, _NECK_STRIDES.index(self.strides[-1]))  # steps from fine to coarse that somebody reads
        self.stage_gates, self.neck_gates = nn.ModuleList(), nn.ModuleList()
        if self.query_aware:
            start: ChannelGate = "as_published" if gates == "as_published" else "repaired"
            self.stage_gates.extend(QueryGate(query, c, start) for c in channels)
            self.neck_gates.extend(QueryGate(query, width, start) for _ in range(self.climbs))
            for layer in self.stage_gates.modules():
                if isinstance(layer, nn.Linear):  # those of the neck keep torch's start
                    nn.init.trunc_normal_(layer.weight, std=0.02)
                    nn.init.zeros_(layer.bias)
        self.freeze(frozen)
        self.train()

    def maps(self, image: Tensor, image_mask: Tensor) -> Tensor:
        """Return the first stage's map [I, S/4, S/4, C']: what comes before the first gate."""
        swin = cast(Any, self.backbone)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            first: Tensor = _stage(swin.layers[0], swin.patch_embed(self.pixels(image, image_mask)), self.checkpointed)
        return first

    def tokens(
        self, maps: Tensor, image_mask: Tensor, query: Tensor | None = None, image_index: Tensor | None = None
    ) -> Tensor:
        x = maps
        levels = []
        for number, stage in enumerate(cast(Any, self.backbone).layers):
            x = x if number == 0 else _stage(stage, x, self.checkpointed)
            if self.query_aware:
                x, image_mask, image_index = self._gate(self.stage_gates[number], x, image_mask, query, image_index)
            levels.append(self.lateral[number](self.norms[number](x)))  # [P, S/4, S/4, C] to [P, S/32, S/32, C]
        for fine in (2, 1, 0):
            levels[fine] = _add_above(levels[fine], levels[fine + 1])
        for fine in range(self.climbs):
            x = levels[fine]
            if self.query_aware:
                x, _, _ = self._gate(self.neck_gates[fine], x, image_mask, query, image_index)
            pooled = _squares(x).mean(4).mean(2)  # the same as over both at once, which takes torch five times as long
            levels[fine + 1] = levels[fine + 1] + pooled
        levels.append(levels[3][:, ::2, ::2])
        tokens = []
        for stride in self.strides:
            number = _NECK_STRIDES.index(stride)
            tokens.append(levels[number].flatten(1, 2) + self.scale_embed.weight[number])
        return torch.cat(tokens, 1)

    def _gate(
        self, gate: nn.Module, x: Tensor, image_mask: Tensor, query: Tensor | None, image_index: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gate maps x [I, H, W, C] for each phrase; return them with the pad and owner of maps that are one's own."""
        assert query is not None and image_index is not None
        stride = image_mask.shape[1] // x.shape[1]
        ignored = token_mask(image_mask, stride) if self.pool == "content" else None
        return (
            gate(x, query, image_index, ignored),
            image_mask[image_index],
            torch.arange(image_index.shape[0], device=x.device),
        )

    def trained(self) -> dict[str, list[nn.Module]]:
        return {"backbone": [self.backbone, self.norms], "encoder": [self.lateral]}


_NECK_STRIDES = (4, 8, 16, 32, 64)


def _timm(backbone: str, **settings: Any) -> nn.Module:
    """Build a backbone with random weights.

    Raises:
        InputError: timm has none of this name, or not with these settings.
    """
    try:
        return timm.create_model(backbone, **settings)
    except (RuntimeError, TypeError, ValueError, AttributeError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"timm cannot build model.visual.backbone={backbone} ({reason}): give another.") from error


def _squares(x: Tensor) -> Tensor:
    """View x [P, H, W, C] as 2 x 2 squares [P, H/2, 2, W/2, 2, C]."""
    rows, columns = x.shape[1:3]
    return x.reshape(x.shape[0], rows // 2, 2, columns // 2, 2, -1)


def _add_above(fine: Tensor, coarse: Tensor) -> Tensor:
    """Add a map [P, H/2, W/2, C] to the finer one [P, H, W, C] below it, each place to its 2 x 2 square."""
    return (_squares(fine) + coarse[:, :, None, :, None]).flatten(1, 2).flatten(2, 3)


def _stage(stage: Any, x: Tensor, checkpointed: bool) -> Tensor:
    """Run a stage of timm's Swin, its patch merging first, on x [B, H, W, C]."""
    x = stage.downsample(x)
    side = stage.blocks[0].window_size[0]
    room = [-size % side for size in x.shape[1:3]]
    shifted = next((block for block in stage.blocks if any(block.shift_size)), None)
    hide = None  # [windows, side ** 2, side ** 2]: places that meet only because the map was rolled
    if shifted is not None:
        hide = shifted.get_attn_mask(x.new_empty(1, x.shape[1] + room[0], x.shape[2] + room[1], 1))
    for block in stage.blocks:
        if checkpointed and torch.is_grad_enabled():
            x = checkpoint(_block, block, x, room, hide, use_reentrant=False)
        else:
            x = _block(block, x, room, hide)
    return x


def _block(block: SwinTransformerBlock, x: Tensor, room: list[int], hide: Tensor | None) -> Tensor:
    x = x + block.drop_path1(_window_attention(block, block.norm1(x), room, hide))
    return x + cast(Tensor, block.drop_path2(block.mlp(block.norm2(x))))


def _window_attention(block: SwinTransformerBlock, x: Tensor, room: list[int], hide: Tensor | None) -> Tensor:
    """Attend within windows of x [B, H, W, C], which is padded before it is rolled.

    Swin's published code does it in this order and its weights know it; timm rolls first.
    """
    rows, columns = x.shape[1:3]
    shift = block.shift_size[0]
    x = F.pad(x, (0, 0, 0, room[1], 0, room[0]))
    if shift:
        x = x.roll((-shift, -shift), (1, 2))
    windows = window_partition(x, block.window_size).flatten(1, 2)  # [B * windows, side ** 2, C]
    windows = block.attn(windows, hide if shift else None).unflatten(1, block.window_size)
    x = window_reverse(windows, block.window_size, rows + room[0], columns + room[1])
    if shift:
        x = x.roll((shift, shift), (1, 2))
    return x[:, :rows, :columns]
