"""Linguistic branch: a BERT encoder that turns a phrase's word pieces into text tokens and the [CLS] query."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel


class LinguisticBranch(nn.Module):
    """BERT without its pooler.

    Args:
        hidden, layers, heads, feedforward: BERT's four sizes.
        vocabulary: number of word pieces.
        frozen: keep every weight as it is and never apply dropout.
    """

    def __init__(
        self, *, hidden: int, layers: int, heads: int, feedforward: int, vocabulary: int, frozen: bool = False
    ) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=feedforward,
        )
        self.bert = BertModel(config, add_pooling_layer=False)
        self.width = hidden
        self.frozen = frozen
        if frozen:
            self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> LinguisticBranch:
        super().train(mode and not self.frozen)
        return self

    def forward(self, tokens: Tensor, token_pad: Tensor) -> Tensor:
        """Encode tokens int64 [P, L], token_pad bool [P, L] -> [P, L, C]; position 0 is the query ([CLS])."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            states: Tensor = self.bert(tokens, attention_mask=(~token_pad).long()).last_hidden_state
        return states
