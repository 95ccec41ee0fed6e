"""The demo: a teacher, a baseline and a distilled student on synthetic scenes, their metrics, a drawing, a report."""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch

from epmvg.config.settings import Recipe
from epmvg.core.files import write_json
from epmvg.core.hardware import cpu_threads
from epmvg.core.images import open_image
from epmvg.core.types import InputError, Progress
from epmvg.data.registry import open_samples
from epmvg.data.synthetic.scenes import DEFAULT_SIZES, write_scenes
from epmvg.distill.pretrain import train_teacher
from epmvg.evaluation.evaluate import evaluate
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
    memory = _PeakMemory()
    report({"event": "say", "text": "1. Generating synthetic scenes with phrases"})
    sizes = QUICK_SIZES if quick else DEFAULT_SIZES
    write_scenes(out / "scenes", sizes=sizes, workers=min(cpu_threads(), 4), progress=_progress(report, "scenes"))
    report({"event": "say", "text": "2. Training a baseline, and in parallel a teacher and its distilled student"})
    summary = _run_parallel({"plain": _plain, "distilled": _distilled}, out, quick, report, memory)
    best = max(("plain", "distilled"), key=lambda name: float(summary[name]["acc50"]))
    report({"event": "say", "text": "3. Drawing a prediction and writing the report"})
    _draw(out / best, out / "scenes", out / "prediction.png")
    write_report([out / "plain", out / "distilled"], out / "report.html")
    memory.sample()
    summary |= {"peak_rss_mb": memory.peak_mb, "seconds": round(time.monotonic() - start, 1)}
    write_json(out / "summary.json", summary)
    return summary


def _prepare_folder(out: Path) -> None:
    """Remove the files of an earlier demo, and nothing else."""
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).exists():
            raise InputError(f"{out} is not empty and holds no earlier demo: choose another --out.")
        for name in FOLDERS:
            if (out / name).exists():
                shutil.rmtree(out / name)
        for name in FILES:
            (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / MARKER, {"made_by": "epmvg demo"})


class _PeakMemory:
    """Peak memory in MB of this process and its children together, sampled at most once a second.

    Pages that processes share count once where the system knows it (Linux).
    """

    def __init__(self) -> None:
        self.peak_mb = 0
        self.due = 0.0

    def sample(self) -> None:
        """Update the peak."""
        if time.monotonic() < self.due:
            return
        self.due = time.monotonic() + 1
        own = psutil.Process()
        total = 0
        for process in (own, *own.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # it has just ended
                memory = process.memory_full_info()
                total += getattr(memory, "pss", memory.rss)
        self.peak_mb = max(self.peak_mb, round(total / 1e6))


Part = Callable[[Path, bool, Report], dict[str, Any]]
"""A part of the demo: called with the demo's folder, `quick` and a report."""


def _run_parallel(
    parts: dict[str, Part], out: Path, quick: bool, report: Report, memory: _PeakMemory
) -> dict[str, Any]:
    """Run each part in a process with its fraction of the cores, and merge their results.

    Two processes use two cores better than the threads of one: the networks are small. When a part fails, the others
    stop at their next report.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, cpu_threads() // len(parts))
    with context.Manager() as manager, ProcessPoolExecutor(len(parts), mp_context=context) as pool:
        rows: queue.Queue[dict[str, Any]] = manager.Queue()
        failed = manager.Event()
        running = [
            pool.submit(_run_part, name, part, out, quick, threads, rows, failed) for name, part in parts.items()
        ]
        while not all(each.done() for each in running) or not rows.empty():
            try:
                report(rows.get(timeout=0.2))
            except queue.Empty:
                memory.sample()
            if any(each.done() and each.exception() for each in running):
                failed.set()
        errors = [error for each in running if (error := each.exception())]
        if errors:
            raise next((error for error in errors if not isinstance(error, _Stopped)), errors[0])
        return {name: value for each in running for name, value in each.result().items()}


def _run_part(
    name: str,
    part: Part,
    out: Path,
    quick: bool,
    threads: int,
    rows: queue.Queue[dict[str, Any]],
    failed: threading.Event,
) -> dict[str, Any]:
    def report(row: dict[str, Any]) -> None:
        if failed.is_set():
            raise _Stopped
        rows.put(row | {"who": name})

    torch.set_num_threads(threads)
    return part(out, quick, report)


class _Stopped(Exception):  # noqa: N818  # the error of another part is raised instead
    """A part of the demo stops because another failed."""


def _plain(out: Path, quick: bool, report: Report) -> dict[str, Any]:
    return {"plain": _train_student("distill=null", out, out / "plain", quick, report)}


def _distilled(out: Path, quick: bool, report: Report) -> dict[str, Any]:
    start = time.monotonic()
    settings = TEACHER_SETTINGS | ({"epochs": 1} if quick else {})
    captions = out / "scenes" / "captions.jsonl"
    metrics = train_teacher(captions, out / "teacher", **settings, progress=_progress(report, "teacher"))
    teacher = asdict(metrics) | {"seconds": round(time.monotonic() - start, 1)}
    student = _train_student(f"distill={out / 'teacher'}", out, out / "distilled", quick, report)
    return {"teacher": teacher, "distilled": student}


def _progress(report: Report, name: str) -> Progress:
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
