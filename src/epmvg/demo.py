"""The main job from start to report, on drawn scenes: a teacher, a plain and a distilled student, scores, pictures."""

from __future__ import annotations

import resource
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from epmvg.config import Recipe
from epmvg.data.catalog import open_records
from epmvg.data.scenes import DEFAULT_SIZES, write_scenes
from epmvg.data.transforms import open_image
from epmvg.distill.pretrain import train_teacher
from epmvg.draw import draw_boxes
from epmvg.evaluation import evaluate, write_json
from epmvg.predict import Predictor
from epmvg.reporting import report as write_report
from epmvg.training import Report, train
from epmvg.types import InputError

MARK = "demo.json"
"""Says that a folder was made by the demo, which may therefore make it anew."""

QUICK_SIZES = {"train": 120, "val": 20, "test": 20, "open": 20, "captions": 60}
QUICK_SETTINGS = ("train.epochs=1", "train.warmup=5")


def run_demo(out: Path, *, quick: bool = False, report: Report | None = None) -> dict[str, Any]:
    """Run the demo and return what it leaves in `summary.json`.

    Args:
        out: folder for everything; an earlier demo there is made anew, anything else is refused.
        quick: a small version that shows the way, not the result.
        report: told what goes on.

    Raises:
        InputError: the folder holds something else.
    """
    tell = report or (lambda row: None)
    start = time.monotonic()
    _claim(out)
    scenes = out / "scenes"
    tell({"event": "say", "text": "1. Drawing scenes with true phrases"})
    write_scenes(scenes, sizes=QUICK_SIZES if quick else DEFAULT_SIZES, progress=_telling(tell, "Drawing"))
    tell({"event": "say", "text": "2. Training a teacher from the scenes' captions"})
    teacher = _teacher(scenes, out / "teacher", tell, quick)
    summary: dict[str, Any] = {}
    for name, distill in (("plain", "distill=null"), ("distilled", f"distill={out / 'teacher'}")):
        tell({"event": "say", "text": f"{3 + len(summary)}. Training the {name} student"})
        settings = [distill, f"data.root={scenes}", *(QUICK_SETTINGS if quick else ())]
        summary[name] = _student(Recipe.load("scenes", *settings), out / name, tell)
    better = max(summary, key=lambda name: float(summary[name]["acc50"]))
    tell({"event": "say", "text": "5. Drawing a prediction and writing the report"})
    _draw(out / better, scenes, out / "prediction.png")
    write_report([out / "plain", out / "distilled"], out / "report.html")
    summary |= {"teacher": teacher, "peak_rss_mb": peak_rss_mb(), "seconds": round(time.monotonic() - start, 1)}
    write_json(out / "summary.json", summary)
    return summary


def _claim(out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        if not (out / MARK).exists():
            raise InputError(f"{out} is not empty and holds no earlier demo: choose another --out.")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / MARK, {"made_by": "epmvg demo"})


def _telling(tell: Report, title: str) -> Any:
    return lambda done, total: tell({"event": "store", "name": title, "done": done, "total": total})


def _teacher(scenes: Path, folder: Path, tell: Report, quick: bool) -> dict[str, Any]:
    start = time.monotonic()
    metrics = train_teacher(
        scenes / "captions.jsonl",
        folder,
        side=160,
        epochs=1 if quick else 20,
        mirror=False,  # the students' scenes are not mirrored either
        progress=_telling(tell, "Teacher"),
    )
    return asdict(metrics) | {"seconds": round(time.monotonic() - start, 1)}


def _student(recipe: Recipe, folder: Path, tell: Report) -> dict[str, Any]:
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
    records = open_records("scenes", split="test", root=scenes)
    asked = [record for record in records if record.image == records[0].image]
    picture = open_image(asked[0].image)
    found = Predictor(run)(picture, [record.phrase for record in asked])
    large = picture.resize((picture.width * 3, picture.height * 3))  # a scene is small beside its labels
    boxes = [(x0 * 3, y0 * 3, x1 * 3, y1 * 3) for x0, y0, x1, y1 in (one.box for one in found)]
    draw_boxes(large, boxes, [one.phrase for one in found]).save(file)


def peak_rss_mb() -> int:
    """Return this process's peak memory in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 1e6 if sys.platform == "darwin" else peak / 1e3)
