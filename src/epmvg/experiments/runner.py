"""Run trainings that may be killed and started again; a lock keeps two processes from running the same one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from epmvg.core.files import write_json
from epmvg.core.types import InputError
from epmvg.data.readers.jsonl import json_objects
from epmvg.data.registry import DATASETS
from epmvg.distill.pretrain import train_teacher
from epmvg.evaluation.evaluate import evaluate
from epmvg.evaluation.samples import short_name
from epmvg.experiments.plan import OWN_TEACHER, Job, Scale, data_hash, missing_data
from epmvg.report.runs import read_metrics
from epmvg.training import Report, train

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
        train(job.recipe, job.folder, resume=(job.folder / "config.yaml").exists(), report=report)
        evaluations = {split: evaluate(job.folder, split=split) for split in job.splits}
    except InputError as error:
        return Outcome("cannot run", str(error))
    metrics = {split: {key: one[key] for key in ("n", "acc50", "miou")} for split, one in evaluations.items()}
    result = {"seed": job.seed, "data": data, "seconds": _seconds(job.folder), "metrics": metrics}
    write_json(job.folder / RESULT, result)
    return Outcome("done", result=result)


def read_predictions(job: Job, split: str) -> list[dict[str, Any]]:
    """Read the predictions that the evaluation of a job wrote."""
    file = job.folder / f"predictions-{short_name(job.recipe.data.name)}-{split}.jsonl"
    return [row for _, row in json_objects(file)]


def _seconds(folder: Path) -> float:
    """Return the training time, from the last row of metrics that states it."""
    return float(next((row["seconds"] for row in reversed(read_metrics(folder)) if "seconds" in row), 0.0))


def make_teacher(scale: Scale, job: Job, report: Report) -> str:
    """Train the scale's own teacher unless it exists; a second process waits for the first. Return a problem or ""."""
    distill = job.recipe.distill
    if distill is None or scale.teacher is None or Path(distill.teacher).name != OWN_TEACHER:
        return ""
    folder = Path(distill.teacher)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.exists():
            return ""
        missing = missing_data(job.recipe, ())  # generates scenes on first use
        if missing:
            return missing
        root = job.recipe.data.root or DATASETS[job.recipe.data.name].default_root()
        assert root is not None  # else the samples could not have been read
        row: dict[str, Any] = {"event": "store", "name": "teacher"}
        try:
            train_teacher(
                Path(root) / "captions.jsonl",
                folder,
                **scale.teacher,
                progress=lambda done, total: report(row | {"done": done, "total": total}),
            )
        except InputError as error:
            return str(error)
    return ""
