"""Text features of a frozen text encoder, cached by word pieces."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from epmvg.core.cache import LruCache
from epmvg.models.text_encoder import TextEncoder


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
        """Encode tokens int64 [P, L] with token_mask bool [P, L] -> float32 [P, L, C], zero at padding."""
        lengths = (~token_mask).sum(1).tolist()
        rows = tokens.to("cpu", torch.int32).numpy()
        keys = [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]
        cached = {key: features for key in keys if (features := self.get(key)) is not None}
        missing = {key: i for i, key in enumerate(keys) if key not in cached}
        if missing:
            index = torch.tensor(list(missing.values()), device=tokens.device)
            encoded = self.text_encoder(tokens[index], token_mask[index]).to(self.dtype)
            for (key, i), features in zip(missing.items(), encoded, strict=True):
                cached[key] = features[: lengths[i]].clone()
                self.put(key, cached[key], cached[key].nbytes)
        padded = pad_sequence([cached[key].float() for key in keys], batch_first=True)  # [P, longest, C]
        return pad(padded, (0, 0, 0, tokens.shape[1] - padded.shape[1]))
