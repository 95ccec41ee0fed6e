"""Linguistic branch: a BERT encoder that turns a phrase's word pieces into text tokens and the [CLS] query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from epmvg.models.freezing import freeze


class LinguisticBranch(nn.Module):
    """BERT without its pooler.

    Args:
        hidden, layers, heads, feedforward: BERT's four sizes.
        vocabulary: number of word pieces.
        dropout: of hidden states and attention.
        frozen: names of BERT's modules that never train, for example "embeddings" and "encoder.layer.0"; a text is
            one name, and "all" freezes the whole branch, which makes its answers storable.
    """

    def __init__(
        self,
        *,
        hidden: int,
        layers: int,
        heads: int,
        feedforward: int,
        vocabulary: int,
        dropout: float = 0.1,
        frozen: Sequence[str] | str = (),
    ) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=feedforward,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        self.bert = BertModel(config, add_pooling_layer=False)
        self.width = hidden
        self.baked: nn.ModuleList | None = None
        self.frozen = freeze(self.bert, frozen, "model.linguistic.frozen")
        self.train()

    def train(self, mode: bool = True) -> LinguisticBranch:
        super().train(mode and not self.frozen)
        return self

    def bake(self) -> None:
        """Compute each layer by one of torch's kernels from now on, in float32: for branches that never train again."""
        layers: list[nn.Module] = []
        for layer in cast(Any, self.bert.encoder.layer):
            attention, config = layer.attention, self.bert.config
            baked = nn.TransformerEncoderLayer(
                self.width,
                config.num_attention_heads,
                config.intermediate_size,
                activation=config.hidden_act,
                layer_norm_eps=config.layer_norm_eps,
                batch_first=True,
            )
            parts = (attention.self.query, attention.self.key, attention.self.value)
            baked.self_attn.load_state_dict(
                {
                    "in_proj_weight": torch.cat([part.weight for part in parts]),
                    "in_proj_bias": torch.cat([part.bias for part in parts]),
                    "out_proj.weight": attention.output.dense.weight,
                    "out_proj.bias": attention.output.dense.bias,
                }
            )
            baked.norm1.load_state_dict(attention.output.LayerNorm.state_dict())
            baked.linear1.load_state_dict(layer.intermediate.dense.state_dict())
            baked.linear2.load_state_dict(layer.output.dense.state_dict())
            baked.norm2.load_state_dict(layer.output.LayerNorm.state_dict())
            layers.append(baked.requires_grad_(False).eval())
        self.bert.encoder.layer = nn.ModuleList()
        self.baked = nn.ModuleList(layers)

    def forward(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Encode tokens int64 [P, L], token_mask bool [P, L] -> [P, L, C]; position 0 is the query ([CLS])."""
        states: Tensor
        if self.baked is not None:
            states = self.bert.embeddings(input_ids=tokens)
            for layer in self.baked:
                states = layer(states, src_key_padding_mask=token_mask)
            return states
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            states = self.bert(tokens, attention_mask=(~token_mask).long()).last_hidden_state
        return states
