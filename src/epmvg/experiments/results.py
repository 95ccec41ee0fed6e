"""Results of a table's trainings: mean and spread over seeds, paired differences, and the table as Markdown."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from epmvg.evaluation.statistics import accuracy, compare
from epmvg.experiments.plan import Setting
from epmvg.experiments.runner import Outcome, read_predictions
from epmvg.experiments.tables import Row

DASH = "\N{EN DASH}"

Predictions = dict[str, dict[int, list[dict[str, Any]]]]
"""Prediction rows by column and seed."""


def predictions_of(setting: Setting, outcomes: Mapping[Path, Outcome]) -> Predictions:
    """Read the predictions of a setting's finished trainings."""
    found: Predictions = defaultdict(dict)
    for job in setting.jobs:
        if outcomes.get(job.folder, Outcome("planned")).state == "done":
            for split in setting.splits:
                found[f"{setting.data} {split}"][job.seed] = read_predictions(job, split)
    return found


def result_row(
    row: Row,
    settings: Sequence[Setting],
    columns: Sequence[str],
    outcomes: Mapping[Path, Outcome],
    predictions: Mapping[Path, Predictions],
    base: Sequence[Setting],
) -> dict[str, Any]:
    """Return a row of the result.

    Args:
        row: of the table.
        settings: its trainings.
        columns: of the result; the table's own come first.
        outcomes: of all trainings.
        predictions: by the folder of a setting.
        base: the trainings that it is compared with.

    Returns:
        name, group, backbone, source; `cells`, each with reported, reproduced (`_spread`) and difference (paired by
        seed and phrase), None where there is none; and `trainings`, one entry per data set.
    """
    reproduced: dict[str, Any] = {}
    differences: dict[str, Any] = {}
    base_folders = {setting.data: setting.folder for setting in base}
    for setting in settings:
        other = base_folders.get(setting.data, setting.folder)
        base_predictions = predictions[other] if other != setting.folder else {}
        for column, own in predictions[setting.folder].items():
            reproduced[column] = _spread([100 * accuracy(rows) for rows in own.values()])
            seeds = sorted(own.keys() & base_predictions.get(column, {}).keys())
            if seeds:
                first, second = ([r for seed in seeds for r in by[seed]] for by in (base_predictions[column], own))
                differences[column] = asdict(compare(first, second))
    reported = dict(zip(columns, row.reported, strict=False))
    return {
        "name": row.name,
        "group": row.group,
        "backbone": row.backbone,
        "source": row.source or ("the paper" if row.student is None else row.reported_in),
        "cells": [
            {
                "reported": reported.get(column),
                "reproduced": reproduced.get(column),
                "difference": differences.get(column),
            }
            for column in columns
        ],
        "trainings": [_training(setting, outcomes) for setting in settings],
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    spread = {"mean": statistics.fmean(values), "deviation": deviation, "low": min(values), "high": max(values)}
    return {"seeds": len(values)} | spread


def _training(setting: Setting, outcomes: Mapping[Path, Outcome]) -> dict[str, Any]:
    """Return the hashes, seeds, mean time and state of a row's trainings on one data set."""
    own = [outcomes.get(job.folder, Outcome("planned")) for job in setting.jobs]
    results = [outcome.result for outcome in own if outcome.state == "done" and outcome.result]
    states = [f"{one.state}{f': {one.reason}' if one.reason else ''}" for one in own if one.state != "done"]
    return {
        "data": setting.data,
        "settings": setting.jobs[0].settings if setting.jobs else "",
        "rows": results[0]["data"] if results else "",
        "seeds": len(results),
        "seconds": statistics.fmean(result["seconds"] for result in results) if results else None,
        "state": "; ".join(dict.fromkeys(states)),
        "remark": setting.remark,
    }


def as_markdown(result: Mapping[str, Any]) -> str:
    """Return a result as Markdown: reported values, then ours in bold."""
    explanation = (
        "Acc@0.5 in %: reported in the paper, then ours in bold as mean ± standard deviation (minimum to maximum) over "
        "seeds, and its difference in points from the row it is compared with, paired by seed and phrase [95 %]. "
        f"Scale {result['scale']}: {result['about']} {result['note']}"
    )
    lines = [f"# {result['heading']}: {result['title']}", "", explanation.strip(), ""]
    header = ["row", "backbone", "source", *result["columns"]]
    lines += [_line(header), _line(["---"] * len(header))]
    for row in result["rows"]:
        name = f"{row['group']}: {row['name']}" if row["group"] else row["name"]
        lines.append(_line([name, row["backbone"], row["source"], *map(cell_text, row["cells"])]))
    lines += ["", "## Trainings", ""]
    header = ["row", "data", "seeds", "mean training time", "settings", "samples", "remark"]
    lines += [_line(header), _line(["---"] * len(header))]
    for row in result["rows"]:
        for training in row["trainings"]:
            time = DASH if training["seconds"] is None else f"{training['seconds'] / 60:.1f} min"
            values = [row["name"], training["data"], training["seeds"], time, training["settings"], training["rows"]]
            lines.append(_line([*values, remark(training)]))
    return "\n".join(lines) + "\n"


def cell_text(cell: Mapping[str, Any]) -> str:
    """Return 83.39 **85.31 ± 0.42 (84.90 to 85.74)** +0.8 [-0.3, +1.9], as far as there are values."""
    parts = [] if cell["reported"] is None else [f"{cell['reported']:.2f}"]
    ours, gap = cell["reproduced"], cell["difference"]
    if ours is not None:
        spread = "" if ours["deviation"] is None else f" ± {ours['deviation']:.2f}"
        spread += f" ({ours['low']:.2f} to {ours['high']:.2f})" if spread else ""
        parts.append(f"**{ours['mean']:.2f}{spread}**")
    if gap is not None:
        parts.append(f"{gap['points']:+.1f} [{gap['low']:+.1f}, {gap['high']:+.1f}]")
    return " ".join(parts) or DASH


def remark(training: Mapping[str, Any]) -> str:
    """Return the state of a training, and where its setting differs from the paper's."""
    return "; ".join(part for part in (training["state"], training["remark"]) if part)


def _line(values: Sequence[Any]) -> str:
    return "| " + " | ".join(str(value).replace("|", "\\|").replace("\n", " ") for value in values) + " |"
