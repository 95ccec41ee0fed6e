"""Runs trainings so that they can be killed and started again, and two starts never run the same one at once."""

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
from epmvg.experiments.reproduce.plan import OWN_TEACHER, Job, Scale, data_hash, trouble_of
from epmvg.training import Report, train

RESULT = "result.json"

State = Literal["planned", "done", "cannot run", "running elsewhere"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job."""

    state: State
    reason: str = ""
    result: dict[str, Any] | None = None  # seed, settings, data, seconds, scores by split


def read_outcome(job: Job) -> Outcome:
    """Return what the job's folder says, without running anything."""
    file = job.folder / RESULT
    if not file.is_file():
        return Outcome("planned")
    result = json.loads(file.read_text(encoding="utf-8"))
    return Outcome("done" if set(job.splits) <= result["scores"].keys() else "planned", result=result)


def run_job(job: Job, report: Report) -> Outcome:
    """Train a job, or go on with it, score it and keep the result; one that is finished is left as it is.

    A lock beside the folder, which the system lets go when its holder dies, keeps a second start out.
    """
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{job.folder}.lock", timeout=0):
            return _run(job, report)
    except Timeout:
        return Outcome("running elsewhere")


def _run(job: Job, report: Report) -> Outcome:
    done = read_outcome(job)
    trouble = trouble_of(job.recipe, job.splits)
    if trouble:
        return done if done.state == "done" else Outcome("cannot run", trouble)
    data = data_hash(job.recipe, job.splits)
    if done.state == "done" and done.result is not None:
        same = done.result["data"] == data
        return done if same else Outcome("cannot run", f"{job.folder} was trained on other rows: choose another --out")
    try:
        train(job.recipe, job.folder, resume=(job.folder / "config.yaml").exists(), report=report)
        scores = {split: _score(job, split) for split in job.splits}
    except InputError as error:
        return Outcome("cannot run", str(error))
    result = {
        "seed": job.seed,
        "settings": job.settings,
        "data": data,
        "seconds": _seconds(job.folder),
        "scores": scores,
    }
    write_json(job.folder / RESULT, result)
    return Outcome("done", result=result)


def rows_answered(job: Job, split: str) -> list[dict[str, Any]]:
    """Read the rows of predictions that scoring left."""
    file = job.folder / f"predictions-{short_name(job.recipe.data.name)}-{split}.jsonl"
    return [row for _, row in json_objects(file)]


def _score(job: Job, split: str) -> dict[str, Any]:
    scores = evaluate(job.folder, split=split)
    return {key: scores[key] for key in ("n", "acc50", "miou")}


def _seconds(folder: Path) -> float:
    """Return the training time, from the last row of metrics that states it; the last line may be torn."""
    with (folder / "metrics.jsonl").open(encoding="utf-8") as lines:
        whole = [json.loads(line) for line in lines if line.endswith("}\n")]
    return float(next((row["seconds"] for row in reversed(whole) if "seconds" in row), 0.0))


def make_teacher(scale: Scale, job: Job, report: Report) -> str:
    """Train the scale's own teacher unless it is there; a second start waits for the first. Return what prevents it."""
    distill = job.recipe.distill
    if distill is None or scale.teacher is None or Path(distill.teacher).name != OWN_TEACHER:
        return ""
    folder = Path(distill.teacher)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.exists():
            return ""
        trouble = trouble_of(job.recipe, ())  # draws scenes that are not there yet
        if trouble:
            return trouble
        root = job.recipe.data.root or DATASETS[job.recipe.data.name].default_root()
        assert root is not None  # else the rows could not have been read
        try:
            train_teacher(
                Path(root) / "captions.jsonl",
                folder,
                **scale.teacher,
                progress=lambda done, total: report(
                    {"event": "store", "name": "teacher", "done": done, "total": total}
                ),
            )
        except InputError as error:
            return str(error)
    return ""
