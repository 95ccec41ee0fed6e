"""The yardstick: TransVG's published computation, written plainly, on the weights of one of our students.

Frozen batch norms as separate multiplications, attention through torch's module with its averaged weights returned,
every position carried, BERT with eager attention, and the image encoded once for every phrase.
"""

from __future__ import annotations

from typing import cast

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d
from transformers import BertModel

from epmvg.models.grounder import Grounder
from epmvg.models.transformer import sine_position


class PlainLayer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, dropout)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor, pad: Tensor) -> Tensor:
        q = x + position
        x = self.norm1(x + self.drop(self.self_attn(q, q, x, key_padding_mask=pad)[0]))
        hidden = self.drop(torch.relu(self.linear1(x)))
        return cast(Tensor, self.norm2(x + self.drop(self.linear2(hidden))))


class PlainTransVG(nn.Module):
    """Answer boxes [P, 4] for as many images as phrases, from normalised pixels."""

    def __init__(self, student: Grounder, depth: int = 50) -> None:
        super().__init__()
        numbers = student.settings
        width, dropout = numbers["fusion"]["width"], numbers["dropout"]
        resnet = getattr(torchvision.models, f"resnet{depth}")(weights=None, norm_layer=FrozenBatchNorm2d)
        self.backbone = nn.Sequential(*list(resnet.children())[:-2])
        self.input_proj = nn.Conv2d(2048, width, 1)
        heads, hidden = numbers["visual"]["heads"], numbers["visual"]["hidden"]
        self.encoder = nn.ModuleList(
            PlainLayer(width, heads, hidden, dropout) for _ in range(numbers["visual"]["layers"])
        )
        config = student.linguistic.bert.config
        config._attn_implementation = "eager"
        self.bert = BertModel(config)
        self.visu_proj, self.text_proj = nn.Linear(width, width), nn.Linear(student.linguistic.width, width)
        self.reg_token = nn.Embedding(1, width)
        self.vl_pos_embed = nn.Embedding(*student.vl_pos_embed.weight.shape)
        heads, hidden = numbers["fusion"]["heads"], numbers["fusion"]["hidden"]
        self.fusion = nn.ModuleList(
            PlainLayer(width, heads, hidden, dropout) for _ in range(numbers["fusion"]["layers"])
        )
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
        )
        self._take(student, resnet)

    def _take(self, student: Grounder, resnet: nn.Module) -> None:
        """Copy the student's weights, so that both answer the same."""
        resnet.load_state_dict(student.visual.backbone.state_dict(), strict=False)
        state = student.state_dict()
        own = {}
        for name in self.state_dict():
            head, _, tail = name.partition(".")
            if head == "backbone":
                continue
            theirs = {
                "input_proj": f"visual.{name}",
                "encoder": f"visual.encoder.layers.{tail}",
                "bert": f"linguistic.{name}",
                "fusion": f"fusion.layers.{tail}",
                "head": f"head.layers.{int(tail[0]) // 2 if head == 'head' else 0}.{tail[2:]}",
            }.get(head, name)
            if "pooler" not in name:
                own[name] = state[theirs]
        self.load_state_dict(own, strict=False)
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(not name.startswith(("0.", "4.")))  # conv1 and layer1 never train

    def forward(self, pixels: Tensor, pad: Tensor, tokens: Tensor, token_pad: Tensor) -> Tensor:
        features = self.input_proj(self.backbone(pixels))  # [P, D, H, W]
        places = pad[:, ::32, ::32]
        position = sine_position(places, features.shape[1]).flatten(1, 2).transpose(0, 1)
        visual_pad = places.flatten(1)
        visual = features.flatten(2).permute(2, 0, 1)  # [N, P, D]
        for layer in self.encoder:
            visual = layer(visual, position, visual_pad)
        text = self.text_proj(self.bert(tokens, (~token_pad).long()).last_hidden_state).transpose(0, 1)
        reg = self.reg_token.weight[:, None].expand(-1, len(tokens), -1)
        x = torch.cat([reg, text, self.visu_proj(visual)])  # the published order
        hide = torch.cat([token_pad.new_zeros(len(tokens), 1), token_pad, visual_pad], 1)
        position = self.vl_pos_embed.weight[:, None]
        for layer in self.fusion:
            x = layer(x, position, hide)
        return cast(Tensor, self.head(x[0]).sigmoid())
