"""Evaluation end to end, from JPEG files to scores, against the published way: a picture opened and encoded a phrase.

    OMP_NUM_THREADS=2 python benchmarks/evaluation.py [--preset mini] [--photos 48] [--images 8] [--json FILE]

Draws a set shaped like RefCOCO: JPEG files of 640 x 480, seven phrases each. Both ways score the same rows with the
same random weights, taking turns, `--images` photos at a time; what is compared is the median of their phrases/s, each
with opening, decoding, tokenising, answering and scoring. The published way is `reference.plain`, one row a step.
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
A_PHOTO = 7  # phrases of a photo, as in RefCOCO


def draw(folder: Path, photos: int) -> list[Sample]:
    """Write drawn scenes as JPEG files and return seven rows of each."""
    records = []
    for number in range(photos):
        scene = draw_scene("benchmark", number, side=SIZE[0])
        file = folder / f"{number:04d}.jpg"
        scene.image.resize(SIZE).save(file, quality=90)
        across, down = (new / old for new, old in zip(SIZE, scene.image.size, strict=True))
        for turn in range(A_PHOTO):
            phrase = scene.phrases[turn % len(scene.phrases)]
            x0, y0, x1, y1 = scene.objects[phrase.target].box
            records.append(Sample(file, phrase.text, (x0 * across, y0 * down, x1 * across, y1 * down)))
    return records


def ours(work: Work, records: list[Sample]) -> list[Row]:
    """Evaluate as `epmvg evaluate` does."""
    rows = predict_rows(work.student, evaluation_loader(work.student, records).batches(0))
    Metrics.of(rows)
    return rows


@torch.inference_mode()
def plainly(work: Work, plain: PlainGrounder, records: list[Sample]) -> list[Row]:
    """Evaluate as published: each row opens its photo and has it encoded."""
    rows = []
    for record in records:
        photo = open_image(record.image)
        letterbox = Letterbox.fit(*photo.size, work.student.image_size)
        image, image_mask = (torch.from_numpy(part)[None] for part in letterbox.pad(letterbox.resize(photo)))
        answered = plain(image, image_mask, *work.full_length([record.phrase]))
        box = letterbox.to_image(answered.double()).tolist()
        rows.append(prediction_row(record, box[0], ious(box, [record.box])[0], score=None))
    Metrics.of(rows)
    return rows


def measure(preset: str, photos: int, images: int) -> dict[str, Any]:
    """Score the whole set both ways, some photos at a time."""
    work = Work(preset)
    plain = work.plain()
    work.student.visual_encoder.fuse_norms()
    rates: dict[str, list[float]] = {"ours": [], "plain": []}
    apart = 0.0
    with tempfile.TemporaryDirectory() as folder:
        records = draw(Path(folder), photos)
        ours(work, records[:A_PHOTO]), plainly(work, plain, records[:1])  # warms up
        for start in range(0, len(records), images * A_PHOTO):
            part = records[start : start + images * A_PHOTO]
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
        "photos": photos,
        "phrases": len(records),
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
    parser.add_argument("--photos", type=int, default=48)
    parser.add_argument("--images", type=int, default=8, help="photos of a turn")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "rows": []}
    for preset in arguments.preset or ("mini", "transvg-r50"):
        found["rows"].append(measure(preset, arguments.photos, arguments.images))
        print(json.dumps(found["rows"][-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
