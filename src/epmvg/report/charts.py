"""Charts of a report as SVG images that are part of the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from epmvg.evaluation.metrics import Row
from epmvg.evaluation.statistics import reliability, risk_coverage
from epmvg.report.runs import Run, is_number, split_order

COLORS = ("#c98a00", "#2f86d6", "#c65aa8", "#d8623a", "#8067d8", "#5f8797")
"""Of the runs, in their order; readable on white and on black."""

MAX_POINTS = 200  # of one line: more cannot be told apart
_TEXT = "#808890"
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: small, in the page's font
    "svg.hashsalt": "epmvg",  # the same chart is the same bytes
    "font.size": 10.5,
    "text.parse_math": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _TEXT),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.spines.left"), False),
}

Scored = tuple[int, Sequence[Row]]
"""The number of a run and its prediction rows."""


@dataclass(frozen=True, slots=True)
class Chart:
    """An image and its title."""

    title: str
    src: str  # a data: address


@dataclass(frozen=True, slots=True)
class Curve:
    """Points (x, y, low, high): values with their intervals."""

    label: str
    points: Sequence[tuple[float, float, float, float]]


def color(number: int) -> str:
    """Return the color of a run."""
    return COLORS[number % len(COLORS)]


def training_charts(runs: Sequence[Run]) -> list[Chart]:
    """Draw Acc@0.5 on each validation split and each loss term over phrases seen, a line per run."""
    evaluations = (row for run in runs for row in run.metrics if row.get("event") == "evaluate")
    splits = sorted({_split(row) for row in evaluations}, key=split_order)
    terms = sorted(
        {name for run in runs for row in run.metrics for name in _loss(row)}, key=lambda n: (n != "total", n)
    )
    charts = [_curves(f"Acc@0.5 on {split}", runs, _accuracy_on(split), percent=True) for split in splits]
    charts += [_curves(f"Loss: {term}", runs, _loss_term(term)) for term in terms]
    return [chart for chart in charts if chart]


def confidence_charts(scored: Iterable[Scored]) -> list[Chart]:
    """Draw the reliability diagram and the risk-coverage curve, a line per run."""
    diagram, diagram_axes = _axes("mean confidence of a bin", percent=True)
    curve, curve_axes = _axes("fraction of phrases kept, most confident first", percent=True)
    for number, rows in scored:
        score = np.array([row["score"] for row in rows], np.float64)
        correct = np.array([row["iou"] >= 0.5 for row in rows], np.float64)
        _, mean_score, mean_correct = reliability(score, correct)
        diagram_axes.plot(mean_score, mean_correct, color=color(number), marker="o", markersize=3.5)
        coverage, risk = risk_coverage(score, correct)
        every = -(-len(coverage) // MAX_POINTS)
        curve_axes.plot(coverage[every - 1 :: every], risk[every - 1 :: every], color=color(number))
    diagram_axes.plot([0, 1], [0, 1], color=_TEXT, linewidth=1, linestyle="--")
    for axes in (diagram_axes, curve_axes):
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0)
    return [_chart("Accuracy by confidence", diagram), _chart("Wrong boxes by coverage", curve)]


def interval_figure(panels: Mapping[tuple[str, str], Sequence[Curve]], x_label: str, y_label: str) -> str:
    """Draw curves with intervals as SVG, in panels by the titles of their row and column, with common axes."""
    rows, columns = (list(dict.fromkeys(key[i] for key in panels)) for i in (0, 1))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(max(3.2 * len(columns), 5), 2.4 * len(rows) + 0.5), layout="constrained")
        grid = figure.subplots(len(rows), len(columns), sharex=True, sharey=True, squeeze=False)
        for (row, column), curves in panels.items():
            axes = grid[rows.index(row)][columns.index(column)]
            axes.set_title(f"{row}, {column}")
            axes.axhline(0, color=_TEXT, linewidth=1, linestyle="--")
            for number, curve in enumerate(curves):
                x, y, low, high = np.array(curve.points, np.float64).reshape(-1, 4).T
                offset = 0.006 * (number - (len(curves) - 1) / 2)  # so that intervals at the same x can be told apart
                style: Any = {"color": color(number), "marker": "o", "markersize": 3.5, "capsize": 2, "linewidth": 1.2}
                axes.errorbar(x + offset, y, (y - low, high - y), label=curve.label, **style)
        figure.patch.set_visible(False)
        for axes in grid.flat:
            axes.patch.set_visible(False)
        figure.supxlabel(x_label, fontsize="medium")
        figure.supylabel(y_label, fontsize="medium")
        handles = grid[0][0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper center", ncols=len(columns) + 1, frameon=False)
    return _svg(figure)


def _loss(row: Row) -> dict[str, Any]:
    loss = row.get("loss")
    return loss if row.get("event") == "step" and isinstance(loss, dict) else {}


def _loss_term(name: str) -> Callable[[Row], Any]:
    return lambda row: _loss(row).get(name)


def _split(row: Row) -> str:
    return f"{row.get('data', '')} {row.get('split', '')}"


def _accuracy_on(split: str) -> Callable[[Row], Any]:
    return lambda row: row.get("acc50") if row.get("event") == "evaluate" and _split(row) == split else None


def _curves(title: str, runs: Sequence[Run], value: Callable[[Row], Any], percent: bool = False) -> Chart | None:
    """Draw values over phrases seen; None where no run has any."""
    figure, axes = _axes("phrases seen", percent)
    for number, run in enumerate(runs):
        points = [(row.get("phrases"), value(row)) for row in run.metrics]
        kept = np.array([point for point in points if all(map(is_number, point))], np.float64).reshape(-1, 2)
        if len(kept):
            parts = np.array_split(kept, min(len(kept), MAX_POINTS))  # neighbors share a point, their mean
            x, y = np.array([part.mean(0) for part in parts]).T
            axes.plot(x, y, color=color(number), marker="o" if len(x) <= 20 else None, markersize=3.5)
    if not axes.lines:
        return None
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    return _chart(title, figure)


def _axes(label: str, percent: bool = False) -> tuple[Figure, Axes]:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.7, 2.9), layout="constrained")
        axes = figure.add_subplot()
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    axes.grid(axis="y", color=_TEXT, alpha=0.25, linewidth=0.8)
    axes.tick_params(length=0, pad=6)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_axisbelow(True)
    axes.set_xlabel(label)
    return figure, axes


def _chart(title: str, figure: Figure) -> Chart:
    return Chart(title, "data:image/svg+xml;base64," + base64.b64encode(_svg(figure).encode()).decode("ascii"))


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()
