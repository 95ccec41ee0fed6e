"""Curves and histograms as SVG that lives inside the page: its inks are the page's own, in light and in dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from epmvg.core.calibration import reliability, risk_coverage
from epmvg.evaluation.metrics import Row
from epmvg.report.runs import Run, SplitName, is_number

MOST_POINTS = 200  # of one line: more than the eye, or a 320 px chart, can tell apart
INKS = 6  # lines that the page's palette tells apart

# Stand-ins that the SVG is written with and `_inline` turns into the page's variables.
TEXT = "#010101"
RUN = "#0202{:02x}"

STYLE: Any = {  # matplotlib types each key, by version
    "svg.fonttype": "none",  # letters stay letters: small, selectable, in the page's font
    "svg.hashsalt": "epmvg",  # the same chart is the same bytes
    "font.size": 10.5,
    "text.parse_math": False,
    "text.color": TEXT,
    "axes.edgecolor": TEXT,
    "axes.labelcolor": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
}

TERMS = {
    "total": "Total loss",
    "l1": "Box distance (L1)",
    "smooth_l1": "Box distance (smooth L1)",
    "giou": "Box overlap (1 \N{MINUS SIGN} GIoU)",
    "image": "Distillation, image",
    "text": "Distillation, text",
    "heatmap": "Heatmap",
    "iou_head": "IoU head (cross-entropy with the IoU)",
    "similarity": "Similarity map",
    "token_box_l1": "Per-token boxes (L1)",
    "token_box_smooth_l1": "Per-token boxes (smooth L1)",
    "token_box_giou": "Per-token boxes (1 \N{MINUS SIGN} GIoU)",
    "reg_box_l1": "Box from [REG] (L1)",
    "reg_box_smooth_l1": "Box from [REG] (smooth L1)",
    "reg_box_giou": "Box from [REG] (1 \N{MINUS SIGN} GIoU)",
}

Series = tuple[int, list[float], list[float]]
"""A line: its run's number, x and y."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture and what it shows."""

    title: str
    svg: str


def loss_charts(runs: Sequence[Run]) -> list[Chart]:
    """Draw each loss term over phrases seen, a line a run."""
    found = {name for run in runs for row in run.metrics for name in _terms(row)}
    names = [name for name in TERMS if name in found] + sorted(found - set(TERMS))
    charts = []
    for name in names:
        lines = [_line(number, run, "step", "phrases", _term(name)) for number, run in enumerate(runs)]
        charts += _curves(TERMS.get(name, name), lines, _thousands, "phrases seen")
    return charts


def accuracy_charts(runs: Sequence[Run]) -> list[Chart]:
    """Draw Acc@0.5 of each split scored while learning, over phrases seen and over learning time."""
    charts = []
    for split in sorted({_split(row) for run in runs for row in run.metrics if row.get("event") == "evaluate"}):
        asked = [(number, run, _accuracy_on(split)) for number, run in enumerate(runs)]
        lines = [_line(number, run, "evaluate", "phrases", accuracy) for number, run, accuracy in asked]
        charts += _curves(f"Acc@0.5 on {split}, by phrases seen", lines, _thousands, "phrases seen", share=True)
        lines, unit = _in_one_unit(
            [_line(number, run, "evaluate", "seconds", accuracy) for number, run, accuracy in asked]
        )
        charts += _curves(f"Acc@0.5 on {split}, by learning time", lines, _plain, unit, share=True)
    return charts


def iou_histogram(answers: Sequence[tuple[int, Sequence[Row]]], split: SplitName) -> Chart:
    """Draw how IoU is spread over phrases, a stepped line a run, the bound of a hit dashed."""
    figure, axes = _axes()
    bins = np.linspace(0, 1, 21)
    for number, rows in answers:
        counts, _ = np.histogram([row["iou"] for row in rows], bins)
        axes.stairs(counts / len(rows), bins, color=_ink(number), linewidth=1.8)
    axes.axvline(0.5, color=TEXT, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    axes.set_xlabel("IoU with the true box")
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    return Chart(f"Phrases of {split} by the IoU of their box", _inline(figure))


def trust_charts(answers: Sequence[tuple[int, Sequence[Row]]]) -> list[Chart]:
    """Draw accuracy over score, and the share of wrong boxes over the share of phrases answered, a line a run."""
    charts = []
    reliable, reliable_axes = _axes()
    risky, risky_axes = _axes()
    for number, rows in answers:
        score = np.array([row["score"] for row in rows], np.float64)
        correct = np.array([row["iou"] >= 0.5 for row in rows], np.float64)
        bins = reliability(score, correct)
        ink = _ink(number)
        x, y = [one.score for one in bins], [one.accuracy for one in bins]
        reliable_axes.plot(x, y, color=ink, linewidth=1.8, marker="o", markersize=3.5)
        coverage, risk = risk_coverage(score, correct)
        every = -(-len(coverage) // MOST_POINTS)
        coverage, risk = coverage[every - 1 :: every], risk[every - 1 :: every]
        risky_axes.plot(coverage, risk, color=ink, linewidth=1.8)
    reliable_axes.plot([0, 1], [0, 1], color=TEXT, linewidth=1, linestyle=(0, (4, 3)))
    reliable_axes.set_xlabel("score, mean of a bin")
    risky_axes.set_xlabel("share of phrases answered, surest first")
    risky_axes.xaxis.set_major_formatter(FuncFormatter(_percent))
    risky_axes.set_ylim(bottom=0)
    for figure, axes, title in (
        (reliable, reliable_axes, "How often a box is right, by its score"),
        (risky, risky_axes, "How many boxes are wrong, if only the surest are answered"),
    ):
        axes.set_xlim(0, 1)
        axes.yaxis.set_major_formatter(FuncFormatter(_percent))
        charts.append(Chart(title, _inline(figure)))
    return charts


def _terms(row: Row) -> dict[str, Any]:
    loss = row.get("loss")
    return loss if row.get("event") == "step" and isinstance(loss, dict) else {}


def _term(name: str) -> Callable[[Row], Any]:
    return lambda row: _terms(row).get(name)


def _split(row: Row) -> SplitName:
    return SplitName.of(str(row.get("data", "")), str(row.get("split", "")))


def _accuracy_on(split: SplitName) -> Callable[[Row], Any]:
    return lambda row: row.get("acc50") if _split(row) == split else None


def _line(number: int, run: Run, event: str, x_key: str, y_of: Callable[[Row], Any]) -> Series:
    points = [(row.get(x_key), y_of(row)) for row in run.metrics if row.get("event") == event]
    kept = [(float(x), float(y)) for x, y in points if is_number(x) and is_number(y)]
    width = -(-len(kept) // MOST_POINTS)  # neighbours share a point, their mean
    groups = [kept[start : start + width] for start in range(0, len(kept), width)] if kept else []
    means = [np.mean(group, axis=0) for group in groups]
    return number, [float(x) for x, _ in means], [float(y) for _, y in means]


def _curves(
    title: str, lines: Sequence[Series], ticks: Callable[[float, object], str], unit: str, share: bool = False
) -> list[Chart]:
    """Draw lines; no chart at all where none has a point."""
    lines = [line for line in lines if line[1]]
    if not lines:
        return []
    figure, axes = _axes()
    for number, x, y in lines:
        marker = "o" if len(x) <= 20 else None
        axes.plot(x, y, color=_ink(number), linewidth=1.8, marker=marker, markersize=3.5)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(ticks))
    axes.set_xlabel(unit)
    if share:
        axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    return [Chart(title, _inline(figure))]


def _axes() -> tuple[Figure, Axes]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(340 / 72, 210 / 72), layout="constrained")  # 1 pt of the SVG is 1 px of the page
        axes = figure.add_subplot()
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_alpha(0.4)
    axes.grid(axis="y", color=TEXT, alpha=0.14, linewidth=0.8)
    axes.tick_params(length=0, pad=6)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_axisbelow(True)
    return figure, axes


def _ink(number: int) -> str:
    return RUN.format(number % INKS)


def _inline(figure: Figure) -> str:
    """Write a figure as SVG for the inside of an HTML page: no preamble, no metadata, no ids but those in use."""
    written = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<g|<text) id="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg)[^>]*?(viewBox="[^"]*")[^>]*>', r'\1 class="chart" \2 aria-hidden="true">', svg, count=1)
    svg = re.sub(r"font(-family)?: [^;\"]*(px|)[^;\"]*'[^;\"]*", "font-size: 10.5px", svg)
    svg = svg.replace(TEXT, "currentColor")
    for number in range(INKS):
        svg = svg.replace(_ink(number), f"var(--run-{number})")
    return re.sub(r"\n\s*", "\n", svg).strip()


def _percent(value: float, _: object) -> str:
    return f"{100 * value:g}%"


def _thousands(value: float, _: object) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e3 else f"{value:g}"


def _plain(value: float, _: object) -> str:
    return f"{value:g}"


def _in_one_unit(lines: Sequence[Series]) -> tuple[list[Series], str]:
    """Turn lines over seconds into lines over the unit that suits the longest."""
    longest = max((max(x) for _, x, _ in lines if x), default=0.0)
    length, unit = (3600, "hours") if longest > 7200 else (60, "minutes") if longest > 120 else (1, "seconds")
    return [(number, [value / length for value in x], y) for number, x, y in lines], unit
