"""Linguistic branch: a BERT encoder that turns a phrase's word pieces into text tokens and the [CLS] query."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel


class LinguisticBranch(nn.Module):
    """BERT without its pooler.

    Args:
        hidden, layers, heads, feedforward: BERT's four sizes.
        vocabulary: number of word pieces.
        dropout: of hidden states and attention.
        frozen: names (prefixes) of BERT's modules that never train, for example "embeddings" and "encoder.layer.0";
            "all" freezes the whole branch, which makes its answers storable.
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
        frozen: Sequence[str] = (),
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
        self.frozen = "all" in frozen
        for name, parameter in self.bert.named_parameters():
            if self.frozen or f"{name}.".startswith(tuple(f"{prefix}." for prefix in frozen)):
                parameter.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> LinguisticBranch:
        super().train(mode and not self.frozen)
        return self

    def forward(self, tokens: Tensor, token_pad: Tensor) -> Tensor:
        """Encode tokens int64 [P, L], token_pad bool [P, L] -> [P, L, C]; position 0 is the query ([CLS])."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            states: Tensor = self.bert(tokens, attention_mask=(~token_pad).long()).last_hidden_state
        return states
