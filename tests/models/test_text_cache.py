"""Cached text features are those of the text encoder."""

from __future__ import annotations

import torch
from grounders import PHRASES

from epmvg.models.factory import create_model
from epmvg.models.text_encoder import TextFeatureCache


def test_cached_features_are_those_of_the_encoder() -> None:
    model = create_model("tiny-resnet", text_encoder={"frozen": ["all"]}).eval()
    cache = TextFeatureCache(model.text_encoder, max_bytes=1000)
    tokens, token_mask = model.tokenize(PHRASES)
    for order in ([0, 1, 2, 3], [3, 1], [2, 2, 0], [0]):
        direct = model.text_encoder(tokens[order], token_mask[order]).masked_fill(token_mask[order][..., None], 0)
        torch.testing.assert_close(cache(tokens[order], token_mask[order]), direct, atol=2e-3, rtol=2e-3)
        assert cache.nbytes <= 1000
