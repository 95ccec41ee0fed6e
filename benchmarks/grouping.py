"""Speedup of training from encoding an image once for several phrases.

Times training steps (forward, loss, backward, optimizer) of a model on random pixels with one and with several phrases
per image, alternately, and prints the medians and their ratio as JSON.

    python benchmarks/grouping.py [--model mini] [--phrases 8] [--batch-size 32] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from functools import partial

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from epmvg.core.hardware import cpu_has_bf16
from epmvg.distill.losses import GroundingLoss
from epmvg.models.factory import create_model
from epmvg.models.grounder import Grounder
from epmvg.models.text_encoder import TextFeatureCache
from reference.timing import interleaved

PHRASES = ["a man in a blue shirt", "his dog", "the woman on the left", "a red bicycle leaning against a wall"]


def seconds_of_step(
    model: Grounder,
    optimizer: torch.optim.Optimizer,
    text_cache: TextFeatureCache | None,
    batch_size: int,
    phrases: int,
) -> float:
    """Time one training step over `batch_size` phrases, `phrases` per image."""
    images = max(1, batch_size // phrases)
    side = model.image_size
    image = torch.rand(images, 3, side, side)
    image_mask = torch.zeros(images, side, side, dtype=torch.bool)
    image_mask[:, : side // 8] = image_mask[:, -side // 8 :] = True  # a 4:3 photo
    tokens, token_mask = model.tokenize([PHRASES[i % len(PHRASES)] for i in range(batch_size)])
    image_index = torch.arange(batch_size) // phrases
    target = torch.rand(batch_size, 4) * 0.4 + 0.3
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bf16()):
        states = text_cache(tokens, token_mask) if text_cache else None
        output = model(image, image_mask, tokens, token_mask, image_index, text_features=states)
    GroundingLoss()(output, target).total.backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--phrases", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    model = create_model(arguments.model).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    text_cache = TextFeatureCache(model.text_encoder) if model.text_encoder.frozen else None
    counts = (1, arguments.phrases)
    step = partial(seconds_of_step, model, optimizer, text_cache, arguments.batch_size)
    times = interleaved([partial(step, phrases) for phrases in counts], arguments.rounds)
    rates = {
        phrases: arguments.batch_size / statistics.median(taken) for phrases, taken in zip(counts, times, strict=True)
    }
    print(
        json.dumps(
            {
                "model": arguments.model,
                "threads": torch.get_num_threads(),
                "phrases_per_s": {str(phrases): round(rate, 1) for phrases, rate in rates.items()},
                "ratio": round(rates[arguments.phrases] / rates[1], 2),
                "rounds": arguments.rounds,
            }
        )
    )


if __name__ == "__main__":
    main()
