"""Evaluation end to end, from JPEG files to metrics, against the published way: an image opened and encoded per phrase.

    OMP_NUM_THREADS=2 python benchmarks/evaluation.py [--preset mini] [--images 48] [--per-round 8] [--json FILE]

Generates a set shaped like RefCOCO: JPEG files of 640 x 480, seven phrases each. Both evaluate the same samples with
the same random weights, in turn, `--per-round` images at a time. Compared are the medians of phrases per second, each
with image decoding, tokenisation, forward pass and metrics. The published way is `reference.plain`, one sample a step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from epmvg.core.geometry import Letterbox
from epmvg.core.images import open_image
from epmvg.core.types import Sample
from epmvg.data.synthetic.scenes import draw_scene
from epmvg.evaluation.evaluate import Row, evaluation_loader, ious, predict_rows, prediction_row
from epmvg.evaluation.metrics import Metrics
from reference.machine import machine
from reference.plain import PlainGrounder
from reference.work import Work

SIZE = (640, 480)
PHRASES_PER_IMAGE = 7  # as in RefCOCO


def draw(folder: Path, images: int) -> list[Sample]:
    """Write synthetic scenes as JPEG files and return seven samples of each."""
    samples = []
    for number in range(images):
        scene = draw_scene("benchmark", number, side=SIZE[0])
        file = folder / f"{number:04d}.jpg"
        scene.image.resize(SIZE).save(file, quality=90)
        across, down = (new / old for new, old in zip(SIZE, scene.image.size, strict=True))
        for turn in range(PHRASES_PER_IMAGE):
            phrase = scene.phrases[turn % len(scene.phrases)]
            x0, y0, x1, y1 = scene.objects[phrase.target].box
            samples.append(Sample(file, phrase.text, (x0 * across, y0 * down, x1 * across, y1 * down)))
    return samples


def ours(work: Work, samples: list[Sample]) -> list[Row]:
    """Evaluate as `epmvg evaluate` does."""
    rows = predict_rows(work.student, evaluation_loader(work.student, samples).batches(0))
    Metrics.of(rows)
    return rows


@torch.inference_mode()
def plainly(work: Work, plain: PlainGrounder, samples: list[Sample]) -> list[Row]:
    """Evaluate as published: each sample opens its image and encodes it."""
    rows = []
    for sample in samples:
        image_file = open_image(sample.image)
        letterbox = Letterbox.fit(*image_file.size, work.student.image_size)
        image, image_mask = (torch.from_numpy(part)[None] for part in letterbox.pad(letterbox.resize(image_file)))
        predicted = plain(image, image_mask, *work.full_length([sample.phrase]))
        box = letterbox.to_image(predicted.double()).tolist()
        rows.append(prediction_row(sample, box[0], ious(box, [sample.box])[0], score=None))
    Metrics.of(rows)
    return rows


def measure(preset: str, images: int, per_round: int) -> dict[str, Any]:
    """Evaluate the whole set both ways, some images at a time."""
    work = Work(preset)
    plain = work.plain()
    work.student.visual_encoder.fuse_norms()
    rates: dict[str, list[float]] = {"ours": [], "plain": []}
    apart = 0.0
    with tempfile.TemporaryDirectory() as folder:
        samples = draw(Path(folder), images)
        ours(work, samples[:PHRASES_PER_IMAGE]), plainly(work, plain, samples[:1])  # warms up
        for start in range(0, len(samples), per_round * PHRASES_PER_IMAGE):
            part = samples[start : start + per_round * PHRASES_PER_IMAGE]
            began = time.perf_counter()
            mine = ours(work, part)
            between = time.perf_counter()
            theirs = plainly(work, plain, part)
            rates["ours"].append(len(part) / (between - began))
            rates["plain"].append(len(part) / (time.perf_counter() - between))
            apart = max(apart, *(abs(a - b) for m, t in zip(mine, theirs, strict=True) for a, b in _edges(m, t)))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "preset": preset,
        "images": images,
        "phrases": len(samples),
        "phrases_per_s": {name: round(value, 2) for name, value in medians.items()},
        "ratio": round(medians["ours"] / medians["plain"], 2),
        "ratios": [round(a / b, 2) for a, b in zip(*rates.values(), strict=True)],
        "largest_difference_px": round(apart, 4),
    }


def _edges(one: Row, other: Row) -> zip[tuple[float, float]]:
    return zip(one["box"], other["box"], strict=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append", help="again for several; mini and transvg-r50 by default")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--per-round", type=int, default=8, help="images in a round")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "rows": []}
    for preset in arguments.preset or ("mini", "transvg-r50"):
        found["rows"].append(measure(preset, arguments.images, arguments.per_round))
        print(json.dumps(found["rows"][-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
