"""Time and memory of `epmvg data check` on a large file.

Writes small images and a JSONL file of samples, with a fault in every thousandth, and checks it. Prints samples per
second and the peak memory of the process as JSON.

    python benchmarks/data_check.py [--samples 1000000] [--images 100000] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from PIL import Image

from epmvg.data.validation import check
from reference.memory import peak_mb

WIDTH, HEIGHT = 96, 72
WORDS = [
    "small",
    "red",
    "old",
    "man",
    "woman",
    "dog",
    "cup",
    "tree",
    "near",
    "behind",
    "under",
    "with",
    "a",
    "and",
    "of",
]
FAULTS = ({"bbox": [90, 5, 40, 20]}, {"phrase": ""}, {"bbox": [5, 5, 0, 9]}, {"phrase": "a <b>cup</b>"}, {"bbox": 7})


def generate(folder: Path, rows: int, images: int) -> Path:
    """Write images and their annotations, unless they exist."""
    file = folder / f"{rows}-{images}.jsonl"
    if file.exists():
        return file
    noise = np.random.default_rng(0)
    for number in range(images):
        place = folder / f"{number // 1000}"
        place.mkdir(exist_ok=True)
        coarse = noise.integers(0, 256, (7, 9, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR).save(place / f"{number}.jpg")
    chance = random.Random(0)
    with file.open("w", encoding="utf-8") as out:
        for number in range(rows):
            image = number * images // rows
            x, y = chance.randrange(60), chance.randrange(40)
            row = {
                "image": f"{image // 1000}/{image}.jpg",
                "phrase": " ".join(chance.choices(WORDS, k=chance.randrange(2, 10))),
                "bbox": [x, y, chance.randrange(10, WIDTH - x), chance.randrange(10, HEIGHT - y)],
                "split": "train" if image % 10 < 8 else "val" if image % 10 == 8 else "test",
                "id": number,
                "width": WIDTH,
                "height": HEIGHT,
            }
            out.write(json.dumps(row | (FAULTS[number // 1000 % len(FAULTS)] if number % 1000 == 0 else {})) + "\n")
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--keep", type=Path, help="folder for the file and images, used again next time")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        file = generate(folder, arguments.samples, arguments.images)
        before, start, busy = peak_mb(), time.perf_counter(), time.process_time()
        report = check(str(file))
        seconds = time.perf_counter() - start
        issues = {kind: len(found) for kind, found in report.issues.items()}
        result = {"samples": report.samples, "images": report.images, "issues": issues}
        speed = {"seconds": round(seconds, 1), "cpu_seconds": round(time.process_time() - busy, 1)}
        speed["samples_per_s"] = round(report.samples / seconds)
        print(json.dumps(result | speed | {"peak_mb": peak_mb(), "peak_before_mb": before}))


if __name__ == "__main__":
    main()
