"""Text encoder: BERT, from the word pieces of a phrase to text tokens, the first of which is [CLS]; and its cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import BertConfig, BertModel

from epmvg.core.cache import LruCache
from epmvg.models.freezing import freeze


class TextEncoder(nn.Module):
    """BERT without its pooler.

    Args:
        width, layers, heads, dim_feedforward: BERT's four sizes.
        vocab_size: number of word pieces.
        dropout: of hidden states and attention.
        frozen: names of BERT's modules that never train, for example "embeddings" and "encoder.layer.0"; "all" freezes
            the whole encoder, so that its outputs can be cached.
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
        frozen: Sequence[str] = (),
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
            mask = ~token_mask
            if self.bert.config._attn_implementation == "sdpa":  # else it reads the mask, which waits for a GPU
                mask = mask[:, None, None].expand(-1, -1, tokens.shape[1], -1)
            states: Tensor = self.bert(tokens, attention_mask=mask).last_hidden_state
        return states


class TextFeatureCache(LruCache[Tensor]):
    """Encode each phrase once.

    Args:
        text_encoder: wholly frozen.
        max_bytes: 100,000 phrases of six word pieces at width 384 take 0.5 GB in float16.
        dtype: of what is kept.

    Raises:
        ValueError: the text encoder trains.
    """

    def __init__(
        self, text_encoder: TextEncoder, max_bytes: int = 500_000_000, dtype: torch.dtype = torch.float16
    ) -> None:
        if any(parameter.requires_grad for parameter in text_encoder.parameters()):
            raise ValueError("only the features of a frozen text encoder can be cached")
        super().__init__(max_bytes)
        self.text_encoder, self.dtype = text_encoder, dtype

    def __call__(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Encode tokens int64 [P, L] with token_mask bool [P, L] -> float32 [P, L, C], zero at padding.

        Both are on the host, so that a GPU is not waited for where every phrase is known.
        """
        device = self.text_encoder.bert.device
        lengths = (~token_mask).sum(1).tolist()
        rows = tokens.to(torch.int32).numpy()
        keys = [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]
        cached = {key: features for key in keys if (features := self.get(key)) is not None}
        missing = {key: i for i, key in enumerate(keys) if key not in cached}
        if missing:
            index = torch.tensor(list(missing.values()), device=tokens.device)
            encoded = self.text_encoder(tokens[index].to(device), token_mask[index].to(device)).to(self.dtype)
            for (key, i), features in zip(missing.items(), encoded, strict=True):
                cached[key] = features[: lengths[i]].clone()
                self.put(key, cached[key], cached[key].nbytes)
        padded = pad_sequence([cached[key].float() for key in keys], batch_first=True)  # [P, longest, C]
        return pad(padded, (0, 0, 0, tokens.shape[1] - padded.shape[1]))
