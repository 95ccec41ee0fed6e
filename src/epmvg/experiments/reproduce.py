"""Reproduce the paper's tables, and run studies of our own: train what is missing, and compare with the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from epmvg.config.flat import flatten
from epmvg.core.distributed import rank_and_world_size
from epmvg.core.files import write_json, write_text
from epmvg.core.types import InputError, Report
from epmvg.experiments.plan import SCALES, Job, clear_cache, missing_data, own_teacher_captions, plan_row
from epmvg.experiments.requirements import costs, fetch_weights, missing_weights, pretrained_parts
from epmvg.experiments.results import Plan, as_markdown, gain_figure, table_result
from epmvg.experiments.runner import Outcome, make_teacher, read_outcome, run_job, teacher_recall
from epmvg.experiments.tables import Grid, read_table


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
    """Run the missing trainings of a table, and return reported and reproduced values.

    A finished training is not repeated, an interrupted one is resumed, and one that another process runs is skipped.
    Equal settings share a training, within a table and between tables. The files of all trainings are looked for before
    the first starts; one that lacks some does not start, and the others do. After every training the table is written
    to `out` as Markdown and JSON, of a grid with a figure as SVG. Several processes share the trainings.

    Args:
        name: of the table: "1" to "7", or a study's.
        overrides: key=value settings of all trainings; those of `distill` apply only to rows with a teacher.
        scale: "scenes", "mini" or "paper".
        seeds: trainings of each setting, with consecutive seeds.
        out: folder of all trainings and tables.
        root: folder of the data.
        dry_run: return the `plan` and train nothing.
        report: called with the rows of metrics of the trainings.

    Returns:
        `results.table_result`, with the `plan` of a dry run.

    Raises:
        InputError: an unknown table or scale, an override that does not fit, or a launcher of several processes.
    """
    report = report or (lambda row: None)
    _check(overrides, scale, seeds)
    clear_cache()
    table, chosen, folder = read_table(name), SCALES[scale], Path(out)
    if table.grid is not None and scale != "scenes":
        raise InputError(f"{name} draws the captions of its teachers. Give --scale scenes.")
    plan: Plan = [
        (row, plan_row(row, table, chosen, seeds=seeds, out=folder, root=root, overrides=overrides))
        for row in table.rows
    ]
    by_folder = {job.folder: job for _, settings in plan for setting in settings for job in setting.jobs}
    order: dict[Path, int] = {}
    for job in (job for _, settings in plan for setting in settings for job in setting.jobs):
        order[job.folder] = min(job.order, order.get(job.folder, job.order))  # rows with equal settings share trainings
    last = 0 if table.grid is None else len(table.grid.first)
    # What is to be trained first with all its seeds, then one seed of each setting, and so on.
    jobs = sorted(by_folder.values(), key=lambda job: (order[job.folder], job.seed * (order[job.folder] == last)))
    outcomes = {job.folder: read_outcome(job) for job in jobs}
    if dry_run:
        return table_result(name, table, chosen, plan, {}) | {"plan": _planned(jobs, outcomes, table.grid)}
    outcomes |= _check_files(jobs, outcomes, report)
    _write(table_result(name, table, chosen, plan, outcomes), folder / scale)
    for wait in (False, True):  # first what needs no teacher that another process is training
        for number, job in enumerate(jobs, 1):
            if outcomes[job.folder].state == "cannot run" or (
                wait and outcomes[job.folder].state != "running elsewhere"
            ):
                continue
            report({"event": "message", "text": f"{number}/{len(jobs)} {job.folder}"})
            before = outcomes[job.folder]
            problem = None if before.state == "done" else make_teacher(chosen, table.grid, job, report, wait=wait)
            outcomes[job.folder] = problem or run_job(job, report)
            if outcomes[job.folder] != before:
                _write(table_result(name, table, chosen, plan, outcomes), folder / scale)
    for job in jobs:  # those that another process finished meanwhile
        if outcomes[job.folder].state == "running elsewhere" and (read := read_outcome(job)).state == "done":
            outcomes[job.folder] = read
    result = table_result(name, table, chosen, plan, outcomes)
    _write(result, folder / scale)
    return result


def _check(overrides: Sequence[str], scale: str, seeds: int) -> None:
    if rank_and_world_size()[1] > 1:
        raise InputError(
            "The trainings of a table run in one process each. Start `epmvg reproduce` once per GPU without a launcher "
            "(CUDA_VISIBLE_DEVICES=0, 1, ...) and with the same --out, so that they share the table."
        )
    if scale not in SCALES:
        raise InputError(f"There is no scale {scale!r}. Give {', '.join(SCALES)}.")
    if seeds < 1:
        raise InputError(f"seeds={seeds} is not a number of trainings. Give 1 or more.")
    for fixed in ("data", "data.name", "train", "train.seed", "distill"):
        if any(override.partition("=")[0] == fixed for override in overrides):
            raise InputError(f"{fixed} is set by the table. Leave {fixed}=... out.")


def _check_files(jobs: Sequence[Job], outcomes: Mapping[Path, Outcome], report: Report) -> dict[Path, Outcome]:
    """Look for the files of all trainings before the first starts, and fetch what hubs have; return what cannot run."""
    refused = {}
    for job in jobs:
        if outcomes[job.folder].state == "done":
            continue
        weights = missing_weights(job.recipe) or fetch_weights(job.recipe)
        if problem := " ".join(filter(None, (weights, missing_data(job.recipe, job.splits)))):
            refused[job.folder] = Outcome("cannot run", problem)
            report({"event": "message", "text": f"{job.folder} cannot run: {problem}"})
    return refused


def _planned(jobs: Sequence[Job], outcomes: Mapping[Path, Outcome], grid: Grid | None) -> dict[str, Any]:
    """Return the settings, parts, state and size of each training, and how many are to be run.

    `settings`, by dotted key, are those that all share, and those of each `runs` the others. Where a grid states hours
    they are of one core, their sum is `hours`, and its teachers are `teachers`.
    """
    settings = [flatten(job.recipe.model_dump(exclude={"name", "about"})) for job in jobs]
    shared = settings[0]
    for own in settings[1:]:
        shared = {key: value for key, value in shared.items() if key in own and own[key] == value}
    runs = []
    for job, own in zip(jobs, settings, strict=True):
        parts, cost = pretrained_parts(job.recipe), costs(job.recipe, job.splits)
        problems = filter(None, [*(part.fix for part in parts if part.state == "missing"), cost["missing"]])
        cost |= {} if job.hours is None else {"hours": job.hours}
        run = {"folder": str(job.folder), "state": outcomes[job.folder].state, "epochs": job.recipe.train.epochs}
        run["settings"] = {key: value for key, value in own.items() if key not in shared}
        run["parts"] = [{"part": part.name, "source": part.source, "state": part.state} for part in parts]
        runs.append(run | cost | {"missing": list(problems)})
    to_run = sum(run["state"] != "done" for run in runs)
    plan: dict[str, Any] = {"settings": shared, "runs": runs, "to_run": to_run}
    if grid is None:
        return plan
    plan["teachers"] = []
    teachers = [job.recipe.distill.teacher for job in jobs if job.recipe.distill is not None]
    for folder in map(Path, dict.fromkeys(teachers)):
        captions = own_teacher_captions(folder.name)
        if captions is None:
            continue
        teacher = {"folder": str(folder), "state": "done" if folder.exists() else "planned", "captions": captions}
        plan["teachers"].append(teacher | {"hours": grid.teacher_hours(captions), "recall": teacher_recall(folder)})
    plan["hours"] = sum(each["hours"] for each in (*runs, *plan["teachers"]) if each["state"] != "done")
    return plan


def _write(result: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"table-{result['table']}.json", result)
    write_text(folder / f"table-{result['table']}.md", as_markdown(result))
    if any(row["arm"] for row in result["rows"]):
        write_text(folder / f"table-{result['table']}.svg", gain_figure(result))
