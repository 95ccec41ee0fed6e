"""The reference implementation: the published computation, written plainly, on the weights of one of our models.

Frozen batch norms as separate multiplications, attention with its weights written out, every position kept, phrases
padded to full length, and the image encoded once for every phrase.
"""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import timm
import torch
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d
from transformers import BertModel

from epmvg.models.dense_head import DenseHead, TokenPhraseSimilarity, mean_box, median_box
from epmvg.models.grounder import Grounder
from epmvg.models.swin import SwinEncoder
from epmvg.models.transformer import TransformerEncoder, sine_position
from epmvg.models.visual_encoder import VisualEncoder


class PlainLayer(nn.Module):
    """DETR's encoder layer on torch's attention module, whose averaged weights are returned."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor, image_mask: Tensor) -> Tensor:
        q = x + position
        x = self.norm1(x + self.drop(self.self_attn(q, q, x, key_padding_mask=image_mask)[0]))
        hidden = self.drop(torch.relu(self.linear1(x)))
        return cast(Tensor, self.norm2(x + self.drop(self.linear2(hidden))))


class PlainNorm(FrozenBatchNorm2d):  # type: ignore[misc]  # torchvision has no types
    """A frozen batch norm as DETR computes it, followed by the activation that timm keeps inside its norms."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps)
        self.act = cast(nn.Module, norm.act) if hasattr(norm, "act") else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.act(super().forward(x)))


class PlainConv(nn.Module):
    """A CNN with its norms beside the convolutions, and DETR's encoder over every cell of the canvas, padded or not."""

    def __init__(self, visual_encoder: VisualEncoder, numbers: dict[str, Any], dropout: float) -> None:
        super().__init__()
        name = numbers["backbone"]
        reductions = cast(Any, timm.create_model(name, features_only=True)).feature_info.reduction()
        indices = [reductions.index(stride) for stride in sorted(numbers["strides"])]
        self.backbone = timm.create_model(name, features_only=True, out_indices=indices)
        for path, norm in [(n, m) for n, m in self.backbone.named_modules() if isinstance(m, nn.BatchNorm2d)]:
            parent, _, child = path.rpartition(".")
            setattr(self.backbone.get_submodule(parent), child, PlainNorm(norm))
        self.backbone.load_state_dict(visual_encoder.backbone.state_dict())
        frozen = {key for key, parameter in visual_encoder.backbone.named_parameters() if not parameter.requires_grad}
        for key, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(key not in frozen)
        self.input_proj = copy.deepcopy(visual_encoder.input_proj)
        self.encoder = _plain_layers(visual_encoder.encoder, numbers, dropout)
        self.stride, self.width = visual_encoder.strides[0], visual_encoder.width

    def forward(self, pixels: Tensor, image_mask: Tensor) -> Tensor:
        """Compute visual tokens [P, N, C] from normalised pixels [P, 3, S, S] and pad [P, S, S]."""
        finest, *coarser = self.backbone(pixels)
        maps = [finest, *(F.interpolate(m, size=finest.shape[-2:], mode="bilinear") for m in coarser)]
        tokens: Tensor = self.input_proj(torch.cat(maps, 1)).flatten(2).transpose(1, 2)
        grid_mask = image_mask[:, :: self.stride, :: self.stride]
        position = sine_position(grid_mask, self.width).flatten(1, 2)
        for layer in self.encoder:
            tokens = layer(tokens, position, grid_mask.flatten(1))
        return tokens


class PlainGrounder(nn.Module):
    """Predict boxes [P, 4] for as many images as phrases, with the weights of `student`."""

    mean: Tensor
    std: Tensor
    visu_proj: nn.Module
    text_proj: nn.Module
    box_head: nn.Module
    reg_token: nn.Embedding
    vl_pos_embed: nn.Embedding
    similarity: TokenPhraseSimilarity | None
    dense_head: DenseHead | None

    def __init__(self, student: Grounder) -> None:
        super().__init__()
        numbers = student.settings
        self.conv, self.swin = None, None
        if isinstance(student.visual_encoder, VisualEncoder):
            self.conv = PlainConv(student.visual_encoder, numbers["visual_encoder"], numbers["dropout"])
        else:
            self.swin = cast(SwinEncoder, copy.deepcopy(student.visual_encoder))
            for module in self.swin.modules():
                if isinstance(module, WindowAttention):
                    module.fused_attn = False
        config = copy.deepcopy(student.text_encoder.bert.config)
        config._attn_implementation = "eager"
        self.bert = BertModel(config, add_pooling_layer=False)
        self.bert.load_state_dict(student.text_encoder.bert.state_dict())
        self.bert.requires_grad_(not student.text_encoder.frozen)
        self.fusion = _plain_layers(student.fusion, numbers["fusion"], numbers["dropout"])
        for part in ("visu_proj", "text_proj", "reg_token", "vl_pos_embed", "box_head", "similarity", "dense_head"):
            setattr(self, part, copy.deepcopy(getattr(student, part)))
        self.strides, self.sine = student.visual_encoder.strides, student.sine_position
        self.register_buffer("mean", student.visual_encoder.mean.clone())
        self.register_buffer("std", student.visual_encoder.std.clone())

    def forward(self, image: Tensor, image_mask: Tensor, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Predict from image [P, 3, S, S] in 0..1 with pad [P, S, S] and tokens [P, L] with token_mask [P, L]."""
        states = self.bert(tokens, (~token_mask).long()).last_hidden_state
        own = torch.arange(len(tokens), device=tokens.device)
        if self.conv is not None:
            pixels = ((image - self.mean) / self.std).masked_fill(image_mask[:, None], 0.0)
            visual_tokens = self.conv(pixels, image_mask)
        else:
            assert self.swin is not None
            visual_tokens = self.swin.visual_tokens(
                self.swin.backbone_features(image, image_mask), image_mask, states[:, 0], own
            )
        grid_masks = [image_mask[:, ::stride, ::stride] for stride in self.strides]
        visual_pad = torch.cat([level.flatten(1) for level in grid_masks], 1)  # [P, N]
        visual, text = self.visu_proj(visual_tokens), self.text_proj(states)
        similarity_logits = None
        if self.similarity is not None:
            similarity_logits = self.similarity(visual_tokens, states, token_mask, own)  # [P, N]
            visual = visual + self.similarity.embed_logits(similarity_logits)
        x = torch.cat([self.reg_token.weight.expand(len(tokens), 1, -1), text, visual], 1)  # the published order
        key_padding_mask = torch.cat([token_mask.new_zeros(len(tokens), 1), token_mask, visual_pad], 1)
        position = self.vl_pos_embed.weight.expand(len(tokens), -1, -1)
        if self.sine:
            position = torch.cat([position, *(sine_position(p, x.shape[-1]).flatten(1, 2) for p in grid_masks)], 1)
        for layer in self.fusion:
            x = layer(x, position, key_padding_mask)
        if self.dense_head is None:
            return cast(Tensor, self.box_head(x[:, 0]).sigmoid())
        fused = x[:, 1 + tokens.shape[1] :]
        heatmap = self.dense_head.heatmap_head(fused).squeeze(-1) + (
            0 if similarity_logits is None else similarity_logits
        )
        token_box = self.dense_head.token_box_head(fused + x[:, :1])
        rows, columns = grid_masks[0].shape[1:]
        across = (torch.arange(columns, device=x.device) + 0.5) / columns
        down = (torch.arange(rows, device=x.device) + 0.5) / rows
        centre = torch.stack(torch.meshgrid(across, down, indexing="xy"), -1).flatten(0, 1)  # [N, 2]
        token_boxes = torch.cat([centre + token_box[..., :2], token_box[..., 2:].sigmoid()], -1)
        return (mean_box if self.training else median_box)(heatmap.masked_fill(visual_pad, -math.inf), token_boxes)


def _plain_layers(encoder: TransformerEncoder, numbers: dict[str, Any], dropout: float) -> nn.ModuleList:
    layers = nn.ModuleList(
        PlainLayer(numbers["width"], numbers["heads"], numbers["dim_feedforward"], dropout) for _ in encoder.layers
    )
    layers.load_state_dict(encoder.layers.state_dict())
    return layers
