"""From the results of trainings to a line of the table: mean and spread over seeds, or why there is no figure."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from epmvg.data.negatives import content_words
from epmvg.evaluation.statistics import PairedDifference, accuracy, compare
from epmvg.experiments.reproduce.plan import Setting, names_learned
from epmvg.experiments.reproduce.runner import Outcome, rows_answered
from epmvg.experiments.reproduce.tables import Row


@dataclass(frozen=True, slots=True)
class Ours:
    """Acc@0.5 in % over the seeds of one cell."""

    seeds: int
    mean: float
    deviation: float | None  # of a sample; None of one seed
    low: float
    high: float
    phrases: int

    @classmethod
    def of(cls, values: Sequence[float], phrases: int) -> Ours:
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(len(values), statistics.fmean(values), deviation, min(values), max(values), phrases)


@dataclass(frozen=True, slots=True)
class Cell:
    """A printed figure and ours, any of which may be missing."""

    printed: float | None
    ours: Ours | None
    gain: PairedDifference | None = None  # over the row it is compared with, on the seeds both have


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the table as it is shown."""

    name: str
    group: str
    backbone: str
    source: str
    cells: list[Cell]
    trainings: list[dict[str, Any]]  # a data set each: data, settings, rows (hashes), seeds, seconds, state, remark

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


Answers = dict[str, dict[int, list[dict[str, Any]]]]
"""Rows of predictions by column and seed."""


def answers_of(setting: Setting, outcomes: Mapping[Path, Outcome]) -> Answers:
    """Read what the finished trainings of a setting answered, by column.

    A split whose phrases name, in part, what no phrase of the training did has a column of these phrases too.
    """
    found: Answers = defaultdict(dict)
    for job in setting.jobs:
        if outcomes.get(job.folder, Outcome("planned")).state != "done":
            continue
        known = names_learned(job.recipe.data)
        for split in setting.splits:
            rows = rows_answered(job, split)
            new = [row for row in rows if not content_words(row["phrase"]) <= known]
            found[f"{setting.data} {split}"][job.seed] = rows
            if 0 < len(new) < len(rows):
                found[f"{setting.data} {split}, new names"][job.seed] = new
    return found


def line_of(
    row: Row,
    settings: Sequence[Setting],
    columns: Sequence[str],
    outcomes: Mapping[Path, Outcome],
    answers: Mapping[Path, Answers],
    base: Sequence[Setting],
) -> Line:
    """Gather what the trainings of a row came to, under the table's columns, compared with those of a `base` row."""
    ours: dict[str, Ours] = {}
    gains: dict[str, PairedDifference] = {}
    before = {setting.data: setting.folder for setting in base}
    for setting in settings:
        other = before.get(setting.data, setting.folder)
        theirs = answers[other] if other != setting.folder else {}
        for column, own in answers[setting.folder].items():
            ours[column] = Ours.of([100 * accuracy(rows) for rows in own.values()], len(next(iter(own.values()))))
            both = sorted(own.keys() & theirs.get(column, {}).keys())
            if both:  # rows meet seed by seed, for a repeated question meets its repetition
                pair = ([row for seed in both for row in each[seed]] for each in (theirs[column], own))
                gains[column] = compare(*pair)
    printed = dict(zip(columns, row.printed, strict=False))  # the paper's columns come first
    cited = "the paper" if row.student is None else row.printed_in
    return Line(
        row.name,
        row.group,
        row.backbone,
        row.source or cited,
        [Cell(printed.get(column), ours.get(column), gains.get(column)) for column in columns],
        [_training(setting, _of(setting, outcomes)) for setting in settings],
    )


def _of(setting: Setting, outcomes: Mapping[Path, Outcome]) -> list[Outcome]:
    return [outcomes.get(job.folder, Outcome("planned")) for job in setting.jobs]


def _training(setting: Setting, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What a row's trainings on one data set were, and what became of them."""
    results = [outcome.result for outcome in outcomes if outcome.state == "done" and outcome.result]
    states = dict.fromkeys(
        outcome.state + (f": {outcome.reason}" if outcome.reason else "")
        for outcome in outcomes
        if outcome.state != "done"
    )
    return {
        "data": setting.data,
        "settings": setting.jobs[0].settings if setting.jobs else "",
        "rows": results[0]["data"] if results else "",
        "seeds": len(results),
        "seconds": statistics.fmean(result["seconds"] for result in results) if results else None,
        "state": "; ".join(states),
        "remark": setting.remark,
    }
