"""Results of a table's trainings: mean and spread over seeds, paired differences, and the table as Markdown."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from epmvg.evaluation.statistics import accuracy, compare
from epmvg.experiments.plan import Scale, Setting, is_own_teacher
from epmvg.experiments.runner import Outcome, read_predictions, teacher_recall
from epmvg.experiments.tables import Row, Table
from epmvg.report.charts import Curve, interval_figure

DASH = "\N{EN DASH}"

Plan = Sequence[tuple[Row, Sequence[Setting]]]
"""The rows of a table with their trainings."""

Predictions = dict[str, dict[int, list[dict[str, Any]]]]
"""Prediction rows by column and seed."""


def table_result(name: str, table: Table, scale: Scale, plan: Plan, outcomes: Mapping[Path, Outcome]) -> dict[str, Any]:
    """Return the results of a table.

    Returns:
        table (its name), heading, title, scale, about, note, `columns` (the table's own first), and `rows`: name,
        group, backbone, source; `cells`, each with reported, reproduced (`_spread`) and difference (paired by seed and
        phrase), None where there is none; and `trainings`, one entry per data set.
    """
    settings = [setting for _, settings in plan for setting in settings]
    columns = [f"{data} {split}" for data, split in table.columns]
    columns += [f"{setting.data} {split}" for setting in settings for split in setting.splits]
    columns = list(dict.fromkeys(columns))
    predictions = {setting.folder: _predictions(setting, outcomes) for setting in settings}
    folders = {row.name: {setting.data: setting.folder for setting in settings} for row, settings in plan}
    return {
        "table": name,
        "heading": f"Table {name} of the paper, reproduced" if name.isdigit() else f"Study {name}",
        "title": table.title,
        "scale": scale.name,
        "about": scale.about,
        "note": table.note,
        "columns": columns,
        "rows": [
            {
                "name": row.name,
                "group": row.group,
                "backbone": row.backbone,
                "boxes": row.boxes,
                "arm": row.arm,
                "source": row.source or ("the paper" if row.student is None else row.reported_in),
                "cells": _cells(row, settings, columns, predictions, folders[row.against or table.rows[0].name]),
                "trainings": [_training(setting, outcomes) for setting in settings],
            }
            for row, settings in plan
        ],
    }


def _predictions(setting: Setting, outcomes: Mapping[Path, Outcome]) -> Predictions:
    """Read the predictions of a setting's finished trainings."""
    found: Predictions = defaultdict(dict)
    for job in setting.jobs:
        if outcomes.get(job.folder, Outcome("planned")).state == "done":
            for split in setting.splits:
                found[f"{setting.data} {split}"][job.seed] = read_predictions(job, split)
    return found


def _cells(
    row: Row,
    settings: Sequence[Setting],
    columns: Sequence[str],
    predictions: Mapping[Path, Predictions],
    base_folders: Mapping[str, Path],
) -> list[dict[str, Any]]:
    """Return the cells of a row; `base_folders` are those of the row that it is compared with, by data set."""
    reported = dict(zip(columns, row.reported, strict=False))
    cells: dict[str, dict[str, Any]] = {
        column: {"reported": reported.get(column), "reproduced": None, "difference": None} for column in columns
    }
    for setting in settings:
        base_folder = base_folders.get(setting.data, setting.folder)
        for column, own in predictions[setting.folder].items():
            cells[column]["reproduced"] = _spread([100 * accuracy(rows) for rows in own.values()])
            base = {} if base_folder == setting.folder else predictions[base_folder].get(column, {})
            if seeds := sorted(own.keys() & base.keys()):
                first, second = ([row for seed in seeds for row in by_seed[seed]] for by_seed in (base, own))
                cells[column]["difference"] = asdict(compare(first, second))
    return list(cells.values())


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
        "samples": results[0]["data"] if results else "",
        "seeds": len(results),
        "seconds": statistics.fmean(result["seconds"] for result in results) if results else None,
        "state": "; ".join(dict.fromkeys(states)),
        "recall": _recall(setting),
        "remark": setting.remark,
    }


def _recall(setting: Setting) -> float | None:
    """Return the recall at 1 of a setting's teacher, where it is one of our own."""
    distill = setting.jobs[0].recipe.distill if setting.jobs else None
    return None if distill is None or not is_own_teacher(distill.teacher) else teacher_recall(Path(distill.teacher))


def gain_figure(result: Mapping[str, Any]) -> str:
    """Draw the gains of a grid's rows against their teachers' recall as SVG: a curve per number of images with boxes.

    Args:
        result: of `table_result`, or read from its file.
    """
    panels: dict[tuple[str, str], list[Curve]] = {}
    rows = [row for row in result["rows"] if row["arm"]]
    for number, column in enumerate(result["columns"]):
        for arm in dict.fromkeys(row["arm"] for row in rows):
            curves = panels.setdefault((column, arm), [])
            for boxes in dict.fromkeys(row["boxes"] for row in rows):
                points = sorted(
                    (row["trainings"][0]["recall"], gap["points"], gap["low"], gap["high"])
                    for row in rows
                    if (row["arm"], row["boxes"]) == (arm, boxes) and (gap := row["cells"][number]["difference"])
                )
                curves.append(Curve(f"{boxes:,} images with boxes", points))
    return interval_figure(panels, "teacher's recall at 1 among 250 images", "gain in Acc@0.5, points")


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
            recall = "" if training["recall"] is None else f"teacher's R@1 {100 * training['recall']:.1f}"
            remark = "; ".join(part for part in (training["state"], recall, training["remark"]) if part)
            values = [row["name"], training["data"], training["seeds"], time]
            lines.append(_line([*values, training["settings"], training["samples"], remark]))
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


def _line(values: Sequence[Any]) -> str:
    return "| " + " | ".join(str(value).replace("|", "\\|").replace("\n", " ") for value in values) + " |"
