"""The demo: what a teacher of captions gives a student that has few boxes, on drawn scenes.

Both students have the boxes of few scenes and are trained for as many steps. The distilled one also sees scenes
without boxes, whose only targets are the teacher's: the regime in which distillation helped most (docs/results.md).
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from epmvg.config.settings import Recipe
from epmvg.core.files import write_json
from epmvg.core.hardware import cpu_threads
from epmvg.core.images import open_image
from epmvg.core.progress import progress_rows
from epmvg.core.types import InputError, Report
from epmvg.data.registry import open_samples
from epmvg.data.synthetic.scenes import write_scenes
from epmvg.distill.pretrain import train_teacher
from epmvg.evaluation.evaluate import evaluate
from epmvg.evaluation.statistics import compare
from epmvg.experiments.parallel import run_parallel
from epmvg.experiments.plan import SCALES
from epmvg.inference.draw import draw_boxes
from epmvg.inference.predictor import Predictor
from epmvg.report import write_report
from epmvg.report.runs import read_runs
from epmvg.training import train

MARKER = "demo.json"
"""Marks a folder of the demo, whose files a later demo replaces."""

FOLDERS = ("scenes", "teacher", "plain", "distilled")
FILES = ("summary.json", "prediction.png", "report.html")
"""What the demo writes to its folder, besides the marker."""

SIZES = {"train": 250, "val": 250, "test": 400, "open": 300, "captions": 6000}
"""Scenes per split: few with boxes, many with captions and phrases alone."""

QUICK_SIZES = {"train": 60, "val": 20, "test": 20, "open": 20, "captions": 80}
QUICK_SETTINGS = ("train.epochs=1", "train.warmup_steps=2")


def run_demo(out: Path, *, quick: bool = False, report: Report | None = None) -> dict[str, Any]:
    """Run the demo and return the content of `summary.json`.

    Args:
        out: folder for all files; those of an earlier demo are replaced, others are kept.
        quick: a small version that shows the steps, not the result.
        report: called with the rows of metrics.

    Returns:
        `scenes`: their number per split; `plain` and `distilled`: `acc50` and `miou` on test, `open_vocabulary_acc50`
        and `seconds`; `teacher`: its metrics; `difference`: of `acc50` and `open_vocabulary_acc50`, distilled minus
        plain, as `PairedDifference`; and `seconds` in all.

    Raises:
        InputError: the folder holds something else.
    """
    report = report or (lambda row: None)
    start = time.monotonic()
    _prepare_folder(out)
    report({"event": "message", "text": "1. Drawing scenes: few with boxes, many with captions and phrases alone"})
    sizes, workers = QUICK_SIZES if quick else SIZES, min(cpu_threads(), 4)
    write_scenes(out / "scenes", sizes=sizes, workers=workers, progress=progress_rows(report, "scenes"))
    report({"event": "message", "text": "2. Training a plain student and, in parallel, a teacher and its student"})
    summary = {"scenes": sizes} | run_parallel({"plain": _plain, "distilled": _distilled}, out, quick, report)
    report({"event": "message", "text": "3. Comparing the students, drawing a prediction and writing the report"})
    folders = [out / "plain", out / "distilled"]
    summary["difference"] = _difference(*folders)
    _draw(folders[summary["distilled"]["acc50"] >= summary["plain"]["acc50"]], out / "scenes", out / "prediction.png")
    write_report(folders, out / "report.html")
    summary["seconds"] = round(time.monotonic() - start, 1)
    write_json(out / "summary.json", summary)
    return summary


def _prepare_folder(out: Path) -> None:
    """Remove the files of an earlier demo, and nothing else."""
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).exists():
            raise InputError(f"{out} is not empty and holds no earlier demo. Choose another --out.")
        for name in FOLDERS:
            shutil.rmtree(out / name, ignore_errors=True)
        for name in FILES:
            (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / MARKER, {"made_by": "epmvg demo"})


def _plain(out: Path, quick: bool, report: Report) -> dict[str, Any]:
    """Train the plain student for as many steps as the distilled one."""
    recipe = _recipe(out, quick)
    longer = recipe.train.lengthened(1 + recipe.unlabeled_ratio)
    plain = recipe.model_copy(update={"distill": None, "train": longer})
    return {"plain": _train_student(plain, out / "plain", report)}


def _distilled(out: Path, quick: bool, report: Report) -> dict[str, Any]:
    start = time.monotonic()
    settings = (SCALES["scenes"].teacher or {}) | ({"epochs": 1} if quick else {})
    captions = out / "scenes" / "captions.jsonl"
    metrics = train_teacher(captions, out / "teacher", **settings, progress=progress_rows(report, "teacher"))
    teacher = asdict(metrics) | {"seconds": round(time.monotonic() - start, 1)}
    return {"teacher": teacher, "distilled": _train_student(_recipe(out, quick), out / "distilled", report)}


def _recipe(out: Path, quick: bool) -> Recipe:
    """Return the recipe of the distilled student."""
    scenes = out / "scenes"
    settings = (f"distill={out / 'teacher'}", f"distill.unlabeled={scenes / 'unlabeled.jsonl'}")
    return Recipe.load("scenes", "few-boxes", f"data.root={scenes}", *settings, *(QUICK_SETTINGS if quick else ()))


def _train_student(recipe: Recipe, folder: Path, report: Report) -> dict[str, Any]:
    start = time.monotonic()
    train(recipe, folder, report=report)
    seconds = time.monotonic() - start
    test, unseen = (evaluate(folder, split=split) for split in ("test", "open"))
    return {
        "acc50": test["acc50"],
        "miou": test["miou"],
        "open_vocabulary_acc50": unseen["acc50"],
        "seconds": round(seconds, 1),
    }


def _difference(plain: Path, distilled: Path) -> dict[str, Any]:
    first, second = (run.predictions for run in read_runs([plain, distilled]))
    splits = {"acc50": "scenes test", "open_vocabulary_acc50": "scenes open"}
    return {key: asdict(compare(first[split], second[split])) for key, split in splits.items()}


def _draw(run: Path, scenes: Path, file: Path) -> None:
    """Draw the predictions of a run for the first test scene."""
    samples = open_samples("scenes", split="test", root=scenes)
    image = open_image(samples[0].image)
    predictions = Predictor(run)(image, [sample.phrase for sample in samples if sample.image == samples[0].image])
    enlarged = image.resize((image.width * 3, image.height * 3))  # a scene is small beside its labels
    boxes = [(x0 * 3, y0 * 3, x1 * 3, y1 * 3) for x0, y0, x1, y1 in (one.box for one in predictions)]
    draw_boxes(enlarged, boxes, [one.phrase for one in predictions]).save(file)
