"""The paper's tables run again, and studies of our own: what is missing is trained, every figure stands beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epmvg.core.distributed import rank_and_world_size
from epmvg.core.files import write_json
from epmvg.core.types import InputError
from epmvg.experiments.reproduce.page import as_html, as_markdown
from epmvg.experiments.reproduce.plan import (
    SCALES,
    THROUGHPUT,
    Scale,
    Setting,
    estimate,
    forget_records,
    is_undrawn,
    plan_row,
    trouble_of,
)
from epmvg.experiments.reproduce.runner import Outcome, make_teacher, read_outcome, run_job
from epmvg.experiments.reproduce.tables import Row, Table, read_table
from epmvg.experiments.reproduce.tally import Answers, Line, answers_of, line_of
from epmvg.report.template import write
from epmvg.training import Report

__all__ = ["reproduce"]


@dataclass(frozen=True, slots=True)
class _Planned:
    row: Row
    settings: list[Setting]


def reproduce(
    name: str,
    overrides: Sequence[str] = (),
    *,
    scale: str = "scenes",
    seeds: int = 1,
    out: Path | str = "runs/reproduce",
    root: Path | str | None = None,
    dry_run: bool = False,
    report: Report | None = None,
) -> dict[str, Any]:
    """Run a table of the paper, or what is missing of it, and show the printed figures beside ours.

    A training that is finished is not run again, one that was cut off goes on, and one that another start is running is
    left to it. Equal settings share a training, within a table and between tables. The table is left in `out` as
    Markdown, HTML and JSON after every training.

    Args:
        name: of the table: "1" to "7", or a study's.
        overrides: key=value settings of all trainings; those of `distill` reach only the rows that distil.
        scale: "scenes", "mini" or "paper".
        seeds: trainings of each setting, with consecutive seeds.
        out: folder of everything; each training has one in it.
        root: where the data lies.
        dry_run: plan and estimate, but draw, fetch and train nothing.
        report: told what goes on.

    Returns:
        The table: title, columns, and for each row its cells, seeds, seconds, hashes and remarks.

    Raises:
        InputError: an unknown table or scale, an override that does not fit, or a launcher of several processes.
    """
    tell = report or (lambda row: None)
    if rank_and_world_size()[1] > 1:
        raise InputError(
            "The trainings of a table run in one process each: start `epmvg reproduce` once per GPU without a launcher "
            "(CUDA_VISIBLE_DEVICES=0, 1, ...) and the same --out, and they share the table."
        )
    if scale not in SCALES:
        raise InputError(f"There is no scale {scale!r}: give {', '.join(SCALES)}.")
    if seeds < 1:
        raise InputError(f"seeds={seeds} is not a number of trainings: give 1 or more.")
    for fixed in ("data", "data.name", "train", "train.seed", "distill"):
        if any(each.partition("=")[0] == fixed for each in overrides):
            raise InputError(f"{fixed} is what the table sets: leave {fixed}=... out.")
    forget_records()
    table, chosen, folder = read_table(name), SCALES[scale], Path(out)
    where = str(root) if root is not None else None
    planned = [
        _Planned(row, plan_row(row, table, chosen, seeds=seeds, out=folder, root=where, overrides=overrides))
        for row in table.rows
    ]
    if dry_run:
        return _result(name, table, chosen, seeds, planned, {}) | {"plan": _plan(planned)}
    jobs = {job.folder: job for each in planned for setting in each.settings for job in setting.jobs}
    outcomes = {job.folder: read_outcome(job) for job in jobs.values()}
    for place, job in enumerate(sorted(jobs.values(), key=lambda job: job.seed), 1):  # each setting once, then again
        tell({"event": "say", "text": f"{place}/{len(jobs)} {job.folder}"})
        trouble = "" if outcomes[job.folder].state == "done" else make_teacher(chosen, job, tell)
        outcomes[job.folder] = Outcome("cannot run", trouble) if trouble else run_job(job, tell)
        _leave(_result(name, table, chosen, seeds, planned, outcomes), folder / scale)
    result = _result(name, table, chosen, seeds, planned, outcomes)
    _leave(result, folder / scale)
    return result


def _result(
    name: str, table: Table, scale: Scale, seeds: int, planned: Sequence[_Planned], outcomes: dict[Path, Outcome]
) -> dict[str, Any]:
    columns = [f"{data} {split}" for data, split in table.columns]
    answers: dict[Path, Answers] = {}
    for setting in _ours(planned):
        columns += [f"{setting.data} {split}" for split in setting.splits]
        answers[setting.folder] = answers_of(setting, outcomes)
        columns += answers[setting.folder]
    columns = list(dict.fromkeys(columns))
    settings = {each.row.name: each.settings for each in planned}
    first = planned[0].row.name
    lines: list[Line] = [
        line_of(each.row, each.settings, columns, outcomes, answers, settings[each.row.against or first])
        for each in planned
    ]
    return {
        "table": name,
        "heading": f"Table {name} of the paper, run again" if name.isdigit() else f"Study {name}",
        "title": table.title,
        "scale": scale.name,
        "about": scale.about,
        "note": table.note,
        "seeds": seeds,
        "columns": columns,
        "rows": [line.as_dict() for line in lines],
    }


def _ours(planned: Sequence[_Planned]) -> list[Setting]:
    return [setting for each in planned for setting in each.settings]


def _plan(planned: Sequence[_Planned]) -> dict[str, Any]:
    """What would be trained, and its estimated cost; equal settings are counted once."""
    runs: dict[Path, dict[str, Any]] = {}
    for setting in _ours(planned):
        if not setting.jobs:
            continue
        recipe = setting.jobs[0].recipe
        cost = estimate(recipe)
        undrawn = is_undrawn(recipe.data)
        for job in setting.jobs:
            runs[job.folder] = {
                "folder": str(job.folder),
                "state": read_outcome(job).state,
                "epochs": recipe.train.epochs,
                "phrases": cost and cost.phrases,
                "counted": bool(cost and cost.counted),
                "steps": cost and cost.steps,
                "gpu_hours": cost and round(cost.gpu_hours, 2),
                "missing": "drawn on first use" if undrawn else trouble_of(recipe, setting.splits),
            }
    open_runs = [run for run in runs.values() if run["state"] != "done"]
    return {
        "runs": list(runs.values()),
        "to_run": len(open_runs),
        "gpu_hours": round(sum(run["gpu_hours"] or 0.0 for run in open_runs), 1),
        "assumes": f"{THROUGHPUT / 1e12:g} TFLOP/s sustained, which needs TF32 or bf16; the student's arithmetic alone",
    }


def _leave(result: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"table-{result['table']}"
    write_json(folder / f"{stem}.json", result)
    write(as_markdown(result), folder / f"{stem}.md")
    write(as_html(result), folder / f"{stem}.html")
