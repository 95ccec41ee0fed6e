"""What a CUDA machine does with this code: inference and training by precision, batch size and compilation.

    python benchmarks/gpu.py OUT.json [--minutes 10] [--tiny]

`--tiny` runs the same on the CPU with a tiny model, in seconds. A setting that fails, for memory or in the compiler, is
a row that says so. Work that would start after `--minutes` is left out; what was measured is written after each row.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from epmvg.core.files import write_json
from epmvg.distill.losses import GroundingLoss
from epmvg.models.factory import create_model
from epmvg.models.grounder import Grounder

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PHRASES = 8  # of an image


def measure(
    model: Grounder, device: str, work: str, precision: str, images: int, compiled: bool, rounds: int
) -> dict[str, Any]:
    """Time one setting; phrases/s and peak memory."""
    side = model.image_size
    image = torch.rand(images, 3, side, side, device=device)
    image_mask = torch.zeros(images, side, side, dtype=torch.bool, device=device)
    words = tuple(part.to(device) for part in model.tokenize(["a man in a blue shirt"] * (images * PHRASES)))
    image_index = torch.arange(images, device=device).repeat_interleave(PHRASES)
    target = torch.rand(images * PHRASES, 4, device=device) * 0.4 + 0.3
    network = torch.compile(model) if compiled else model
    scaler = torch.amp.GradScaler(device, enabled=precision == "fp16" and device == "cuda")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    autocast = torch.autocast(device, PRECISIONS[precision], enabled=precision != "fp32")

    def predict() -> None:
        with torch.inference_mode(), autocast:
            network(image, image_mask, *words, image_index)

    def train() -> None:
        with autocast:
            output = network(image, image_mask, *words, image_index)
        scaler.scale(GroundingLoss()(output, target).total).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    model.train(work == "training")
    seconds, peak = timed(predict if work == "inference" else train, device, rounds)
    return {"phrases_per_s": round(images * PHRASES / seconds, 1), "ms": round(seconds * 1e3, 2), "peak_mb": peak}


def timed(run: Callable[[], None], device: str, rounds: int) -> tuple[float, int | None]:
    """Median seconds of some rounds after two that warm up, and peak MB on the GPU."""
    cuda = device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    taken = []
    for number in range(rounds + 2):
        start = time.perf_counter()
        run()
        if cuda:
            torch.cuda.synchronize()
        if number >= 2:
            taken.append(time.perf_counter() - start)
    return statistics.median(taken), round(torch.cuda.max_memory_allocated() / 1e6) if cuda else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device: run this on a GPU, or give --tiny.")
    device = "cpu" if arguments.tiny else "cuda"
    models = {"tiny-resnet": (1, 2)} if arguments.tiny else {"mini": (1, 8, 64, 256), "transvg-r50": (1, 8, 32)}
    compilations = (False,) if arguments.tiny else (False, True)
    precisions = ("fp32", "bf16") if arguments.tiny else tuple(PRECISIONS)
    end = time.monotonic() + 60 * arguments.minutes
    about = {"gpu": None if arguments.tiny else torch.cuda.get_device_name(), "torch": torch.__version__}
    rows = []
    for compiled, name in itertools.product(compilations, models):
        model = create_model(name).to(device)
        for work, precision, images in itertools.product(("inference", "training"), precisions, models[name]):
            if time.monotonic() > end:
                break
            row: dict[str, Any] = {"model": name, "work": work, "precision": precision, "images": images}
            row |= {"compiled": compiled}
            try:
                row |= measure(model, device, work, precision, images, compiled, 2 if arguments.tiny else 10)
            except RuntimeError as error:  # torch's out-of-memory and its compiler's errors among them
                row["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
            rows.append(row)
            print(json.dumps(row), flush=True)
            write_json(arguments.out, about | {"rows": rows})
            if "error" in row:
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
