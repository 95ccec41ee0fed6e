"""A small student from true boxes, from a larger model's boxes, and from both, on drawn scenes.

    python benchmarks/label.py --out runs/label [--seeds 3] [--sizes 300 1000 4000] [--dry-run]

A run of the recipe `scenes`, trained and calibrated here, labels scenes that it has not seen: their true phrases are
given, `--min-score auto` leaves boxes out, and confidences are weights. "both" has the true boxes of N images and
labeled boxes of N others. All students take the same number of steps and are evaluated on the same true boxes.
Started again, it continues; processes share the work.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from epmvg.config.settings import Recipe
from epmvg.core.boxes import box_iou
from epmvg.core.calibration import CONFIDENCE_FILE
from epmvg.core.files import write_json, write_rows, write_text
from epmvg.core.types import Sample
from epmvg.data.convert import write_samples
from epmvg.data.registry import open_samples
from epmvg.data.synthetic.scenes import DEFAULT_SIZES, write_scenes
from epmvg.evaluation.calibration import calibrate
from epmvg.experiments.plan import Job
from epmvg.experiments.runner import read_outcome, run_job
from epmvg.inference.labels import label_images

SOURCES = ("true", "labeled", "both")
SPLITS = ("val", "test")
SECONDS = 0.4  # of a step with its part of validation, on two cores with cached backbone features
STUDENT = (
    "model.visual_encoder={frozen: [all], width: 64, dim_feedforward: 128}",
    "model.fusion={layers: 1, width: 64, dim_feedforward: 128}",
)


def recipe_of(data: Path, steps: int, phrases: int, seed: int) -> Recipe:
    """Return the recipe of scenes for a smaller student and a number of steps."""
    epochs = steps * 44 / max(phrases, 44)
    return Recipe.load(
        "scenes",
        "distill=null",
        f"data.name={data}",
        *STUDENT,
        f"train.seed={seed}",
        f"train.epochs={epochs}",
        f"train.eval_interval={epochs / 2}",
        f"train.warmup_steps={min(100, steps // 4)}",
    )


def jobs_of(out: Path, sizes: Sequence[int], steps: int, seeds: int) -> dict[tuple[str, int], list[Job]]:
    """Return the trainings of each source and number of images, one per seed."""
    jobs = {}
    for source in SOURCES:
        for size in sizes:
            data = out / f"{source}-{size}.jsonl"
            phrases = len(open_samples(str(data), split="train")) if data.exists() else 0
            recipes = [recipe_of(data, steps, phrases, seed) for seed in range(seeds)]
            folders = [out / "runs" / f"{source}-{size}" / f"seed-{seed}" for seed in range(seeds)]
            jobs[source, size] = [
                Job(recipe, SPLITS, folder, seed, "")
                for seed, (recipe, folder) in enumerate(zip(recipes, folders, strict=True))
            ]
    return jobs


def train_labeler(out: Path, seen: int, others: Mapping[str, int]) -> Path:
    """Train and calibrate the model that labels, on the first `seen` scenes; return its folder."""
    scenes = write_scenes(out / "seen", sizes={"train": seen, **others}, workers=2)
    recipe = Recipe.load("scenes", "distill=null", f"data.root={scenes}")
    outcome = run_job(Job(recipe, SPLITS, out / "labeler", recipe.train.seed, ""), lambda row: None)
    if outcome.state != "done":
        raise SystemExit(
            f"{out / 'labeler'}: {outcome.state} {outcome.reason.rstrip('.')}. Start this again afterwards."
        )
    if not (out / "labeler" / CONFIDENCE_FILE).exists():
        calibrate(out / "labeler")
    return out / "labeler"


def write_data(out: Path, sizes: Sequence[int], seen: int, others: Mapping[str, int]) -> None:
    """Draw scenes, label those after the first `seen`, and write the data of all trainings."""
    largest, model = max(sizes), train_labeler(out, seen, others)
    write_scenes(out / "scenes", sizes={"train": seen + 2 * largest, **others}, workers=2)
    samples = open_samples("scenes", split=None, root=out / "scenes")
    images = list(dict.fromkeys(sample.image for sample in samples if sample.split == "train"))[seen:]
    true = by_image(samples, images)
    file, labels = out / "phrases.jsonl", out / "labels.jsonl"
    if not labels.exists():
        write_rows(
            file,
            (
                {"image": image.relative_to(out / "scenes").as_posix(), "phrases": [one.phrase for one in own]}
                for image, own in true.items()
            ),
        )
        label_images(out / "scenes", labels, [str(model)], phrases=file)
    labeled = by_image(open_samples(str(labels), split=None), images)
    write_json(out / "labels.json", quality(true, labeled))
    evaluation = [sample for sample in samples if sample.split in SPLITS]
    for size in sizes:
        first, others_ = images[:size], images[largest : largest + size]
        parts = {
            "true": [true[image] for image in first],
            "labeled": [labeled[image] for image in first],
            "both": [*(true[image] for image in first), *(labeled[image] for image in others_)],
        }
        for source, own in parts.items():
            training = [replace(sample, split="train") for part in own for sample in part]
            write_samples(out / f"{source}-{size}.jsonl", training + evaluation, None)


def by_image(samples: Sequence[Sample], images: Sequence[Path]) -> dict[Path, list[Sample]]:
    """Return the samples of each image, images in their order."""
    own: dict[Path, list[Sample]] = {image: [] for image in images}
    for sample in samples:
        if sample.image in own:
            own[sample.image].append(sample)
    return own


def quality(true: Mapping[Path, Sequence[Sample]], labeled: Mapping[Path, Sequence[Sample]]) -> dict[str, Any]:
    """Return how many boxes were kept, and the fraction of them, and of their weight, that is right (IoU 0.5)."""
    boxes = {(image, one.phrase.casefold()): one.box for image, own in true.items() for one in own}
    kept = [(one, boxes[image, one.phrase.casefold()]) for image, own in labeled.items() for one in own]
    right = np.array([box_iou(np.array([one.box]), np.array([box]))[0, 0] >= 0.5 for one, box in kept])
    weights = np.array([one.weight for one, _ in kept])
    weighted = float(np.average(right, weights=weights))
    return {"boxes": len(boxes), "kept": len(kept), "right": float(right.mean()), "right_weighted": weighted}


def as_table(jobs: Mapping[tuple[str, int], Sequence[Job]], sizes: Sequence[int]) -> str:
    """Return Acc@0.5 on test in %, mean and standard deviation over the seeds that are finished, as Markdown."""
    lines = ["| Acc@0.5 on test | " + " | ".join(f"{size:,} images" for size in sizes) + " |"]
    lines.append("| --- |" + " --- |" * len(sizes))
    for source in SOURCES:
        cells = []
        for size in sizes:
            done = [outcome.result for job in jobs[source, size] if (outcome := read_outcome(job)).state == "done"]
            values = [100 * result["metrics"]["test"]["acc50"] for result in done if result is not None]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread} ({len(values)})" if values else "-")
        lines.append(f"| {source} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[300, 1000, 4000], help="training images")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seen", type=int, default=DEFAULT_SIZES["train"], help="scenes that the labeler learns from")
    parser.add_argument("--evaluation", type=int, nargs=2, default=[250, 400], help="scenes of val and test")
    parser.add_argument("--dry-run", action="store_true", help="print what is left to do and its hours")
    arguments = parser.parse_args()
    out, sizes = arguments.out, sorted(arguments.sizes)
    if not arguments.dry_run:
        out.mkdir(parents=True, exist_ok=True)
        others = dict(zip(SPLITS, arguments.evaluation, strict=True))
        write_data(out, sizes, arguments.seen, others)
    jobs = jobs_of(out, sizes, arguments.steps, arguments.seeds)
    left = [job for own in jobs.values() for job in own if read_outcome(job).state != "done"]
    print(f"{len(left)} trainings of {arguments.steps} steps, {len(left) * arguments.steps * SECONDS / 3600:.1f} hours")
    for job in [] if arguments.dry_run else sorted(left, key=lambda job: job.seed):
        print(job.folder, run_job(job, lambda row: None).state, flush=True)
        write_text(out / "table.md", as_table(jobs, sizes))
    print(as_table(jobs, sizes))


if __name__ == "__main__":
    main()
