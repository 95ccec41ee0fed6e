"""The main job from start to report, on drawn scenes: a teacher, a plain and a distilled student, scores, pictures."""

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
from epmvg.core.types import InputError
from epmvg.data.registry import open_samples
from epmvg.data.synthetic.scenes import DEFAULT_SIZES, write_scenes
from epmvg.distill.pretrain import train_teacher
from epmvg.evaluation.evaluate import evaluate
from epmvg.inference.draw import draw_boxes
from epmvg.inference.predictor import Predictor
from epmvg.report import write_report
from epmvg.training import Report, train

MARK = "demo.json"
"""Marks a folder that the demo made: an earlier demo in it is replaced."""

FOLDERS = ("scenes", "teacher", "plain", "distilled")
FILES = ("summary.json", "prediction.png", "report.html")
"""What the demo leaves in its folder, besides the mark."""

TEACHER_SETTINGS: dict[str, Any] = {
    "side": 160,
    "epochs": 20,
    "mirror": False,
}  # the students' scenes are not mirrored either

QUICK_SIZES = {"train": 120, "val": 20, "test": 20, "open": 20, "captions": 60}
QUICK_SETTINGS = ("train.epochs=1", "train.warmup_steps=5")


def run_demo(out: Path, *, quick: bool = False, report: Report | None = None) -> dict[str, Any]:
    """Run the demo and return what it leaves in `summary.json`.

    Args:
        out: folder for everything; an earlier demo there is replaced, other files beside it are kept.
        quick: a small version that shows the way, not the result.
        report: told what goes on.

    Raises:
        InputError: the folder holds something else.
    """
    tell = report or (lambda row: None)
    start = time.monotonic()
    _claim(out)
    scenes = out / "scenes"
    workers = cpu_threads()
    tell({"event": "say", "text": "1. Drawing scenes with true phrases"})
    sizes = QUICK_SIZES if quick else DEFAULT_SIZES
    write_scenes(scenes, sizes=sizes, workers=min(workers, 4), progress=_telling(tell, "drawing"))
    tell({"event": "say", "text": "2. Training a plain student, and beside it a teacher and its distilled student"})
    memory = _Memory()
    summary = _side_by_side({"plain": _plain, "distilled": _distilled}, out, quick, workers, tell, memory)
    better = max(("plain", "distilled"), key=lambda name: float(summary[name]["acc50"]))
    tell({"event": "say", "text": "3. Drawing a prediction and writing the report"})
    _draw(out / better, scenes, out / "prediction.png")
    write_report([out / "plain", out / "distilled"], out / "report.html")
    memory.look()
    summary["peak_rss_mb"] = memory.peak
    summary["seconds"] = round(time.monotonic() - start, 1)
    write_json(out / "summary.json", summary)
    return summary


Part = Callable[[Path, bool, Report], dict[str, Any]]


class _Memory:
    """The most memory, MB, that this process and those it started have held together; looked at every second.

    A page that several processes share counts once where the system can tell (Linux).
    """

    def __init__(self) -> None:
        self.peak = 0
        self.next = 0.0

    def look(self) -> None:
        if time.monotonic() < self.next:
            return
        self.next = time.monotonic() + 1
        own = psutil.Process()
        held = 0
        for process in (own, *own.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # it has just ended
                memory = process.memory_full_info()
                held += getattr(memory, "pss", memory.rss)
        self.peak = max(self.peak, round(held / 1e6))


def _side_by_side(
    parts: dict[str, Part], out: Path, quick: bool, threads: int, tell: Report, memory: _Memory
) -> dict[str, Any]:
    """Run each part in a process of its own, with its share of the threads; merge what they return.

    Where one part fails the others stop at their next report.

    Two processes use two cores far better than the threads of one: these networks are small.
    """
    context = multiprocessing.get_context("spawn")
    each_has = max(1, threads // len(parts))
    with context.Manager() as manager, ProcessPoolExecutor(len(parts), mp_context=context) as pool:
        rows: queue.Queue[dict[str, Any]] = manager.Queue()
        failed = manager.Event()
        running = [
            pool.submit(_run_part, name, part, out, quick, each_has, rows, failed) for name, part in parts.items()
        ]
        summary: dict[str, Any] = {}
        while not all(each.done() for each in running) or not rows.empty():
            try:
                tell(rows.get(timeout=0.2))
            except queue.Empty:
                memory.look()
            if any(each.done() and each.exception() for each in running):
                failed.set()
        faults = [error for each in running if (error := each.exception())]
        if faults:
            raise next((error for error in faults if not isinstance(error, _Stopped)), faults[0])
        for each in running:
            summary |= each.result()
    return summary


def _run_part(
    name: str,
    part: Part,
    out: Path,
    quick: bool,
    threads: int,
    rows: queue.Queue[dict[str, Any]],
    failed: threading.Event,
) -> dict[str, Any]:
    def tell(row: dict[str, Any]) -> None:
        if failed.is_set():
            raise _Stopped
        rows.put(row | {"who": name})

    torch.set_num_threads(threads)
    return part(out, quick, tell)


class _Stopped(Exception):  # noqa: N818  # no error: another part's is what is reported
    """This part of the demo stops because another failed."""


def _plain(out: Path, quick: bool, tell: Report) -> dict[str, Any]:
    return {"plain": _student("distill=null", out, out / "plain", quick, tell)}


def _distilled(out: Path, quick: bool, tell: Report) -> dict[str, Any]:
    teacher = _teacher(out / "scenes", out / "teacher", tell, quick)
    student = _student(f"distill={out / 'teacher'}", out, out / "distilled", quick, tell)
    return {"teacher": teacher, "distilled": student}


def _claim(out: Path) -> None:
    """Remove what an earlier demo made, and nothing else."""
    if out.exists() and any(out.iterdir()):
        if not (out / MARK).exists():
            raise InputError(f"{out} is not empty and holds no earlier demo: choose another --out.")
        for name in FOLDERS:
            if (out / name).exists():
                shutil.rmtree(out / name)
        for name in FILES:
            (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / MARK, {"made_by": "epmvg demo"})


def _telling(tell: Report, title: str) -> Any:
    return lambda done, total: tell({"event": "store", "name": title, "done": done, "total": total})


def _teacher(scenes: Path, folder: Path, tell: Report, quick: bool) -> dict[str, Any]:
    start = time.monotonic()
    metrics = train_teacher(
        scenes / "captions.jsonl",
        folder,
        **(TEACHER_SETTINGS | ({"epochs": 1} if quick else {})),
        progress=_telling(tell, "teacher"),
    )
    return asdict(metrics) | {"seconds": round(time.monotonic() - start, 1)}


def _student(distill: str, out: Path, folder: Path, quick: bool, tell: Report) -> dict[str, Any]:
    recipe = Recipe.load("scenes", distill, f"data.root={out / 'scenes'}", *(QUICK_SETTINGS if quick else ()))
    start = time.monotonic()
    train(recipe, folder, report=tell)
    seconds = time.monotonic() - start
    test, unseen = (evaluate(folder, split=split) for split in ("test", "open"))
    return {
        "acc50": test["acc50"],
        "miou": test["miou"],
        "open_vocabulary_acc50": unseen["acc50"],
        "seconds": round(seconds, 1),
    }


def _draw(run: Path, scenes: Path, file: Path) -> None:
    """Draw what a run finds for the phrases of the first test scene."""
    records = open_samples("scenes", split="test", root=scenes)
    asked = [record for record in records if record.image == records[0].image]
    picture = open_image(asked[0].image)
    found = Predictor(run)(picture, [record.phrase for record in asked])
    large = picture.resize((picture.width * 3, picture.height * 3))  # a scene is small beside its labels
    boxes = [(x0 * 3, y0 * 3, x1 * 3, y1 * 3) for x0, y0, x1, y1 in (one.box for one in found)]
    draw_boxes(large, boxes, [one.phrase for one in found]).save(file)
