"""Text features of a frozen text encoder, cached by word pieces."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from epmvg.models.text_encoder import TextEncoder


class TextFeatureCache:
    """Encode each phrase once; the least recently used ones are dropped first.

    Args:
        text_encoder: wholly frozen.
        max_phrases: 100,000 phrases of six word pieces at width 384 take 0.5 GB in float16.
        dtype: of what is kept.

    Raises:
        ValueError: the text encoder trains.
    """

    def __init__(
        self, text_encoder: TextEncoder, max_phrases: int = 100_000, dtype: torch.dtype = torch.float16
    ) -> None:
        if any(parameter.requires_grad for parameter in text_encoder.parameters()):
            raise ValueError("only the features of a frozen text encoder can be cached")
        self.text_encoder = text_encoder
        self.max_phrases = max_phrases
        self.dtype = dtype
        self._features: OrderedDict[bytes, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._features)

    def clear(self) -> None:
        self._features.clear()

    def __call__(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Encode tokens int64 [P, L] with token_mask bool [P, L] -> float32 [P, L, C], zero at padding."""
        lengths = (~token_mask).sum(1).tolist()
        rows = tokens.to("cpu", torch.int32).numpy()
        keys = [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]
        found = {key: self._features[key] for key in keys if key in self._features}
        missing = {key: i for i, key in enumerate(keys) if key not in found}
        if missing:
            index = torch.tensor(list(missing.values()), device=tokens.device)
            features = self.text_encoder(tokens[index], token_mask[index]).to(self.dtype)
            for (key, i), states in zip(missing.items(), features, strict=True):
                found[key] = states[: lengths[i]].clone()
        for key, states in found.items():
            self._features[key] = states
            self._features.move_to_end(key)
        while len(self._features) > self.max_phrases:
            self._features.popitem(last=False)
        padded = pad_sequence([found[key].float() for key in keys], batch_first=True)  # [P, longest, C]
        return pad(padded, (0, 0, 0, tokens.shape[1] - padded.shape[1]))
