"""What a teacher costs a training step: with none, with cached embeddings, and with one that runs in every step.

Whole steps as `epmvg train` takes them (forward, teacher, loss, backward, optimizer), by one student in one process, on
the same batches in turn; opening the student's images is in none of them. The teacher is of the named size and
random. Cached, it takes the image file, and all its embeddings are on disk before the clock runs; in every step, it
takes the student's input, and nothing is cached.

    OMP_WAIT_POLICY=passive OMP_NUM_THREADS=2 python benchmarks/teacher_overhead.py [--json]
        [--presets mini,transvg-r50] [--steps 9] [--images 2] [--phrases 4] [--teacher ViT-B-32]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from epmvg.config.settings import Recipe
from epmvg.core.types import Batch
from epmvg.data.synthetic.scenes import write_scenes
from epmvg.distill.targets import DistillationTargets
from epmvg.training.processes import join_processes
from epmvg.training.run import Run
from epmvg.training.setup import prepare_run

BATCHES = 3  # that come in turn


def prepare(preset: str, folder: Path, arguments: argparse.Namespace) -> Run:
    """Make a run of a preset with a frozen teacher that encodes the image files."""
    recipe = Recipe.of(
        {
            "model": {"name": preset, "pretrained": False},
            "data": {
                "name": str(folder / "scenes" / "annotations.jsonl"),
                "batch_size": arguments.images * arguments.phrases,
                "phrases_per_image": arguments.phrases,
            },
            "distill": {
                "teacher": arguments.teacher,
                "pretrained": None if Path(arguments.teacher).is_dir() else "random",
            },
            "train": {"precision": "auto"},
        },
        "benchmark",
    )
    return prepare_run(recipe, folder / preset, join_processes("cpu"), lambda row: None)


def take_step(run: Run, batch: Batch) -> None:
    with run.autocast():
        output = run.model(*batch.inputs, **run.frozen_inputs(batch))
        targets = run.targets(batch)
    run.criterion(output, batch.boxes, targets).total.backward()
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)


def seconds_of_steps(run: Run, steps: int) -> dict[str, list[float]]:
    """Take `steps` steps of each kind in turn."""
    cached = run.teacher
    assert cached is not None
    teachers = {"none": None, "cached": cached, "online": DistillationTargets(cached.clip)}
    batches = [batch for batch, _ in zip(run.train_loader.batches(0), range(BATCHES), strict=False)]
    for batch in batches:
        cached(batch)
        if run.text_cache is not None:
            run.text_cache(batch.tokens, batch.token_mask)
    take_step(run, batches[0])
    names = list(teachers)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(steps):
        first = number % len(names)  # each goes first as often as the others
        for name in names[first:] + names[:first]:
            run.teacher = teachers[name]
            start = time.perf_counter()
            take_step(run, batches[number % len(batches)])
            times[name].append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print medians as one JSON object")
    parser.add_argument("--presets", default="mini,transvg-r50", help="names with commas between them")
    parser.add_argument("--steps", type=int, default=9, help="timed steps of each kind")
    parser.add_argument("--images", type=int, default=2, help="images in a batch")
    parser.add_argument("--phrases", type=int, default=4, help="phrases of each image")
    parser.add_argument("--teacher", default="ViT-B-32", help="an open_clip name, a teacher's folder or configuration")
    arguments = parser.parse_args()
    medians: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["EPMVG_CACHE"] = str(folder / "cache")
        write_scenes(
            folder / "scenes",
            sizes={"train": BATCHES * arguments.images, "val": 1, "test": 1, "open": 1, "captions": 1},
        )
        for preset in arguments.presets.split(","):
            times = seconds_of_steps(prepare(preset, folder, arguments), arguments.steps)
            medians[preset] = {kind: statistics.median(taken) for kind, taken in times.items()}
    if arguments.json:
        print(json.dumps({preset: {k: round(s, 4) for k, s in row.items()} for preset, row in medians.items()}))
        return
    print(
        f"{arguments.teacher}; {arguments.images} images of {arguments.phrases} phrases; "
        f"{torch.get_num_threads()} threads; medians of {arguments.steps} steps"
    )
    print(f"{'preset':<16}{'none':>10}{'cached':>10}{'online':>10}{'cached':>10}{'online':>10}")
    for preset, row in medians.items():
        ratios = "".join(f"{(row[kind] / row['none'] - 1) * 100:>+9.1f}%" for kind in ("cached", "online"))
        print(f"{preset:<16}" + "".join(f"{seconds:>9.3f}s" for seconds in row.values()) + ratios)


if __name__ == "__main__":
    main()
