"""The demo: a teacher, a baseline and a distilled student on synthetic scenes, their metrics, a drawing, a report."""

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
from epmvg.core.types import InputError, Progress
from epmvg.data.registry import open_samples
from epmvg.data.synthetic.scenes import DEFAULT_SIZES, write_scenes
from epmvg.distill.pretrain import train_teacher
from epmvg.evaluation.evaluate import evaluate
from epmvg.experiments.parallel import run_parallel
from epmvg.inference.draw import draw_boxes
from epmvg.inference.predictor import Predictor
from epmvg.report import write_report
from epmvg.training import Report, train

MARKER = "demo.json"
"""Marks a folder of the demo, whose files a later demo replaces."""

FOLDERS = ("scenes", "teacher", "plain", "distilled")
FILES = ("summary.json", "prediction.png", "report.html")
"""What the demo writes to its folder, besides the marker."""

TEACHER_SETTINGS: dict[str, Any] = {"image_size": 160, "epochs": 20}
QUICK_SIZES = {"train": 120, "val": 20, "test": 20, "open": 20, "captions": 60}
QUICK_SETTINGS = ("train.epochs=1", "train.warmup_steps=5")


def run_demo(out: Path, *, quick: bool = False, report: Report | None = None) -> dict[str, Any]:
    """Run the demo and return the content of `summary.json`.

    Args:
        out: folder for all files; those of an earlier demo are replaced, others are kept.
        quick: a small version that shows the steps, not the result.
        report: called with the rows of metrics.

    Raises:
        InputError: the folder holds something else.
    """
    report = report or (lambda row: None)
    start = time.monotonic()
    _prepare_folder(out)
    report({"event": "say", "text": "1. Generating synthetic scenes with phrases"})
    sizes = QUICK_SIZES if quick else DEFAULT_SIZES
    write_scenes(out / "scenes", sizes=sizes, workers=min(cpu_threads(), 4), progress=store_progress(report, "scenes"))
    report({"event": "say", "text": "2. Training a baseline, and in parallel a teacher and its distilled student"})
    summary = run_parallel({"plain": _plain, "distilled": _distilled}, out, quick, report)
    best = max(("plain", "distilled"), key=lambda name: float(summary[name]["acc50"]))
    report({"event": "say", "text": "3. Drawing a prediction and writing the report"})
    _draw(out / best, out / "scenes", out / "prediction.png")
    write_report([out / "plain", out / "distilled"], out / "report.html")
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
    return {"plain": _train_student("distill=null", out, out / "plain", quick, report)}


def _distilled(out: Path, quick: bool, report: Report) -> dict[str, Any]:
    start = time.monotonic()
    settings = TEACHER_SETTINGS | ({"epochs": 1} if quick else {})
    captions = out / "scenes" / "captions.jsonl"
    metrics = train_teacher(captions, out / "teacher", **settings, progress=store_progress(report, "teacher"))
    teacher = asdict(metrics) | {"seconds": round(time.monotonic() - start, 1)}
    student = _train_student(f"distill={out / 'teacher'}", out, out / "distilled", quick, report)
    return {"teacher": teacher, "distilled": student}


def store_progress(report: Report, name: str) -> Progress:
    """Return a function that reports (done, total) as rows of progress."""
    return lambda done, total: report({"event": "store", "name": name, "done": done, "total": total})


def _train_student(distill: str, out: Path, folder: Path, quick: bool, report: Report) -> dict[str, Any]:
    recipe = Recipe.load("scenes", distill, f"data.root={out / 'scenes'}", *(QUICK_SETTINGS if quick else ()))
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


def _draw(run: Path, scenes: Path, file: Path) -> None:
    """Draw the predictions of a run for the first test scene."""
    samples = open_samples("scenes", split="test", root=scenes)
    image = open_image(samples[0].image)
    predictions = Predictor(run)(image, [sample.phrase for sample in samples if sample.image == samples[0].image])
    enlarged = image.resize((image.width * 3, image.height * 3))  # a scene is small beside its labels
    boxes = [(x0 * 3, y0 * 3, x1 * 3, y1 * 3) for x0, y0, x1, y1 in (one.box for one in predictions)]
    draw_boxes(enlarged, boxes, [one.phrase for one in predictions]).save(file)
