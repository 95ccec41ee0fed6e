"""Write src/epmvg/models/sizes.json: parameters and GFLOPs of every preset, for `epmvg list models`."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from epmvg.models.factory import create_model
from epmvg.models.grounder import Grounder
from epmvg.models.presets import PRESETS

FILE = Path(__file__).parents[1] / "src/epmvg/models/sizes.json"


@torch.no_grad()
def measure(model: Grounder) -> dict[str, float]:
    """Count what a model costs.

    Returns:
        parameters; trained, those of them that train; tokens, the visual tokens; gflops of one square image with one
        phrase of full length, and phrase_gflops of a further phrase; a multiplication and an addition count as two.
    """
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    tokens = torch.ones(1, model.max_length, dtype=torch.int64)
    token_mask = tokens == 0
    images = torch.zeros(1, 3, model.image_size, model.image_size)
    image_mask = torch.zeros(1, model.image_size, model.image_size, dtype=torch.bool)
    model.eval()
    with FlopCounterMode(display=False) as total:
        encoded = model.encode_images(images, image_mask)
        with FlopCounterMode(display=False) as phrase:
            text = model.text_encoder(tokens, token_mask)
            model.query(encoded, text, token_mask, torch.zeros(1, dtype=torch.int64))
    return {
        "parameters": sum(n for n, _ in sizes),
        "trained": sum(n for n, trains in sizes if trains),
        "tokens": model.visual_encoder.num_tokens(model.image_size),
        "gflops": round(total.get_total_flops() / 1e9, 2),
        "phrase_gflops": round(phrase.get_total_flops() / 1e9, 2),
    }


def main() -> None:
    sizes = {}
    for name in sorted(PRESETS):
        sizes[name] = measure(create_model(name))
        print(name, sizes[name])
    FILE.write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
