"""Run trainings that may be killed and started again; a lock keeps two processes from running the same one."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from epmvg.core.files import write_json
from epmvg.core.progress import progress_rows
from epmvg.core.types import InputError, Report
from epmvg.data.pairs import ScenePairs
from epmvg.data.readers.jsonl import json_objects
from epmvg.data.registry import DATASETS
from epmvg.data.synthetic.scenes import write_scenes
from epmvg.distill.contrastive import train_end_to_end
from epmvg.distill.pretrain import read_captions, train_teacher
from epmvg.evaluation.evaluate import evaluate
from epmvg.evaluation.samples import short_name
from epmvg.experiments.plan import (
    Job,
    Scale,
    data_hash,
    is_own_teacher,
    is_own_unlabeled,
    missing_data,
    own_teacher_captions,
)
from epmvg.experiments.tables import Grid
from epmvg.report.runs import read_metrics
from epmvg.training import train
from epmvg.training.checkpoint import FOLDER as CHECKPOINT

RESULT = "result.json"

State = Literal["planned", "done", "cannot run", "running elsewhere"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The state of a job."""

    state: State
    reason: str = ""
    result: dict[str, Any] | None = None  # seed, data, seconds, metrics by split


def read_outcome(job: Job) -> Outcome:
    """Read the state of a job from its folder."""
    file = job.folder / RESULT
    if not file.is_file():
        return Outcome("planned")
    result = json.loads(file.read_text(encoding="utf-8"))
    return Outcome("done" if set(job.splits) <= result["metrics"].keys() else "planned", result=result)


def run_job(job: Job, report: Report) -> Outcome:
    """Train a job or resume it, evaluate it and write its result; a finished one is left as it is.

    The lock beside its folder is released by the system when its holder ends, however it does.
    """
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{job.folder}.lock", timeout=0):
            return _run(job, report)
    except Timeout:
        return Outcome("running elsewhere")


def _run(job: Job, report: Report) -> Outcome:
    done = read_outcome(job)
    if missing := missing_data(job.recipe, job.splits):
        return done if done.state == "done" else Outcome("cannot run", missing)
    data = data_hash(job.recipe, job.splits)
    if done.state == "done" and done.result is not None and done.result["data"] != data:
        return Outcome("cannot run", f"{job.folder} was trained on other samples. Choose another --out")
    if done.state == "done":
        return done
    try:
        if done.result is None:
            _draw_unlabeled(job, report)
            train(job.recipe, job.folder, resume=(job.folder / "config.yaml").exists(), report=report)
        evaluations = {split: evaluate(job.folder, split=split) for split in job.splits}
    except InputError as error:
        return Outcome("cannot run", str(error))
    metrics = {} if done.result is None else dict(done.result["metrics"])
    metrics |= {split: {key: one[key] for key in ("n", "acc50", "miou")} for split, one in evaluations.items()}
    result = {"seed": job.seed, "data": data, "seconds": _seconds(job.folder), "metrics": metrics}
    write_json(job.folder / RESULT, result)
    shutil.rmtree(job.folder / CHECKPOINT, ignore_errors=True)  # they would take most of a table's disk space
    return Outcome("done", result=result)


def read_predictions(job: Job, split: str) -> list[dict[str, Any]]:
    """Read the predictions that the evaluation of a job wrote."""
    file = job.folder / f"predictions-{short_name(job.recipe.data.name)}-{split}.jsonl"
    return [row for _, row in json_objects(file)]


def _seconds(folder: Path) -> float:
    """Return the training time, from the last row of metrics that states it."""
    return float(next((row["seconds"] for row in reversed(read_metrics(folder)) if "seconds" in row), 0.0))


def make_teacher(scale: Scale, grid: Grid | None, job: Job, report: Report, *, wait: bool = True) -> Outcome | None:
    """Train the scale's own teacher of a job unless it exists; return None where the job can be trained.

    Where another process trains it, `wait` for that, or return that it runs elsewhere.
    """
    distill = job.recipe.distill
    if distill is None or scale.teacher is None or not is_own_teacher(distill.teacher):
        return None
    folder = Path(distill.teacher)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{folder}.lock", timeout=-1 if wait else 0):
            if folder.exists():
                return None
            missing = missing_data(job.recipe, ())  # generates scenes on first use
            if missing:
                return Outcome("cannot run", missing)
            root = job.recipe.data.root or DATASETS[job.recipe.data.name].default_root()
            assert root is not None  # else the samples could not have been read
            _train_teacher(folder, Path(root) / "captions.jsonl", scale, grid, report)
    except Timeout:
        return Outcome("running elsewhere")
    except InputError as error:
        return Outcome("cannot run", str(error))
    return None


def _train_teacher(folder: Path, captions: Path, scale: Scale, grid: Grid | None, report: Report) -> None:
    """Train the scale's teacher on the captions of its data, or a grid's on as many scenes as its folder's name has."""
    progress = progress_rows(report, folder.name)
    scenes = own_teacher_captions(folder.name)
    if grid is None or not scenes:
        train_teacher(captions, folder, **scale.teacher or {}, progress=progress)
        return
    val = read_captions(captions, captions.parent, "val")
    train_end_to_end(ScenePairs(scenes), val, folder, **grid.captions[scenes], progress=progress)


def _draw_unlabeled(job: Job, report: Report) -> None:
    """Draw the scenes without boxes of a grid's job unless they exist.

    Raises:
        InputError: their folder contains something else, or cannot be written.
    """
    file = job.recipe.unlabeled
    if file is None or not is_own_unlabeled(file):
        return
    folder = Path(file).parent
    count = int(folder.name.rpartition("-")[2])
    write_scenes(folder, sizes={"captions": count}, progress=progress_rows(report, folder.name))


def teacher_recall(folder: Path) -> float | None:
    """Return the recall at 1 that a teacher of our own reached, None where there is none yet."""
    file = folder / "teacher.json"
    return float(json.loads(file.read_text(encoding="utf-8"))["metrics"]["r1"]) if file.is_file() else None
