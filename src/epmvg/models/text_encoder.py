"""Text encoder: BERT, from the word pieces of a phrase to text tokens, the first of which is [CLS]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from epmvg.models.freezing import freeze


class TextEncoder(nn.Module):
    """BERT without its pooler.

    Args:
        width, layers, heads, dim_feedforward: BERT's four sizes.
        vocab_size: number of word pieces.
        dropout: of hidden states and attention.
        frozen: names of BERT's modules that never train, for example "embeddings" and "encoder.layer.0"; a string is
            one name, and "all" freezes the whole encoder, so that its outputs can be cached.
    """

    def __init__(
        self,
        *,
        width: int,
        layers: int,
        heads: int,
        dim_feedforward: int,
        vocab_size: int,
        dropout: float = 0.1,
        frozen: Sequence[str] | str = (),
    ) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=dim_feedforward,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        self.bert = BertModel(config, add_pooling_layer=False)
        self.width = width
        self.frozen = freeze(self.bert, frozen, "model.text_encoder.frozen")
        self.train()

    def train(self, mode: bool = True) -> TextEncoder:
        super().train(mode and not self.frozen)
        return self

    def forward(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Encode tokens int64 [P, L] with token_mask bool [P, L], True at padding -> float [P, L, C]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            states: Tensor = self.bert(tokens, attention_mask=(~token_mask).long()).last_hidden_state
        return states
