"""From the results of trainings to a line of the table: mean and spread over seeds, or why there is no figure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from epmvg.reporting import PairedDifference, compare
from epmvg.reproduce.plan import Setting
from epmvg.reproduce.runner import Outcome, answers_of
from epmvg.reproduce.tables import Row


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


def line_of(
    row: Row,
    settings: Sequence[Setting],
    columns: Sequence[str],
    outcomes: Mapping[Path, Outcome],
    base: Sequence[Setting],
) -> Line:
    """Gather what the trainings of a row came to, under the table's columns, compared with those of a `base` row."""
    ours: dict[str, Ours] = {}
    gains: dict[str, PairedDifference] = {}
    for setting in settings:
        gains |= _gains(setting, base, outcomes)
        results = [outcome.result for outcome in _of(setting, outcomes) if outcome.state == "done" and outcome.result]
        for split in setting.splits if results else ():
            scores = [result["scores"][split] for result in results]
            ours[f"{setting.data} {split}"] = Ours.of([100 * score["acc50"] for score in scores], scores[0]["n"])
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


def _gains(setting: Setting, base: Sequence[Setting], outcomes: Mapping[Path, Outcome]) -> dict[str, PairedDifference]:
    """Compare with the base row's trainings on the same data, seed by seed, one interval over all seeds."""
    other = next((each for each in base if each.data == setting.data and each.jobs != setting.jobs), None)
    if other is None:
        return {}
    both = [
        (a, b)
        for a, b in zip(other.jobs, setting.jobs, strict=False)
        if all(outcomes.get(job.folder, Outcome("planned")).state == "done" for job in (a, b))
    ]
    if not both:
        return {}
    return {
        f"{setting.data} {split}": compare(
            [row for job, _ in both for row in answers_of(job, split)],
            [row for _, job in both for row in answers_of(job, split)],
        )
        for split in setting.splits
    }


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
