"""A table as Markdown and as one HTML page, in the style of the other pages."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

from epmvg.report.template import fill

NONE = "\N{EN DASH}"


def as_markdown(result: Mapping[str, Any]) -> str:
    """Return a table as Markdown: a printed figure, then ours in bold."""
    lines = [f"# {result['heading']}: {result['title']}", "", _explanation(result), ""]
    header = ["row", "backbone", "source", *result["columns"]]
    lines += [_row(header), _row(["---"] * len(header))]
    for row in result["rows"]:
        name = f"{row['group']}: {row['name']}" if row["group"] else row["name"]
        lines.append(_row([name, row["backbone"], row["source"], *(cell_text(cell) for cell in row["cells"])]))
    lines += ["", "## How ours were made", ""]
    header = ["row", "data", "seeds", "mean learning time", "settings", "rows", "remark"]
    lines += [_row(header), _row(["---"] * len(header))]
    for name, training in _trainings(result):
        values = [name, training["data"], training["seeds"], clock(training["seconds"]), training["settings"]]
        lines.append(_row([*values, training["rows"], remark(training)]))
    return "\n".join(lines) + "\n"


def as_html(result: Mapping[str, Any]) -> str:
    """Return a table as one page that needs nothing else."""
    return fill(
        (resources.files("epmvg.experiments.reproduce") / "page.html").read_text(encoding="utf-8"),
        {"clock": clock, "remark": remark, "printed": printed_text, "ours": ours_text, "gain": gain_text},
        result=result,
        explanation=_explanation(result),
        trainings=_trainings(result),
    )


def cell_text(cell: Mapping[str, Any]) -> str:
    """Return a printed figure, ours in bold, and what ours gains over the first row's."""
    ours, gain = ours_text(cell["ours"]), gain_text(cell["gain"])
    shown = [printed_text(cell["printed"])] if cell["printed"] is not None else []
    return " ".join([*shown, *([f"**{ours}**"] if ours else []), *([gain] if gain else [])]) or NONE


def printed_text(figure: float | None) -> str:
    """83.39, or a dash."""
    return NONE if figure is None else f"{figure:.2f}"


def ours_text(ours: Mapping[str, Any] | None) -> str:
    """85.31 ± 0.42 (84.90 to 85.74), without the spread where there is one seed, "" where there is none."""
    if ours is None:
        return ""
    if ours["deviation"] is None:
        return f"{ours['mean']:.2f}"
    return f"{ours['mean']:.2f} ± {ours['deviation']:.2f} ({ours['low']:.2f} to {ours['high']:.2f})"


def gain_text(gain: Mapping[str, Any] | None) -> str:
    """+0.8 [-0.3, +1.9], "" where there is nothing to compare with."""
    return "" if gain is None else f"{gain['points']:+.1f} [{gain['low']:+.1f}, {gain['high']:+.1f}]"


def clock(seconds: float | None) -> str:
    """12 min, or a dash."""
    if seconds is None:
        return NONE
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min"


def remark(training: Mapping[str, Any]) -> str:
    """What is to be known about a training: what became of it, and where its setting differs from the paper's."""
    return "; ".join(part for part in (training["state"], training["remark"]) if part)


def _explanation(result: Mapping[str, Any]) -> str:
    said = (
        "Acc@0.5 in %: printed in the paper, then ours as mean ± standard deviation (least to most) over seeds, and "
        "its difference in points from the first row (or the plain one it belongs to), paired seed by seed and phrase "
        "by phrase [95 %, images drawn anew]. "
        f"Scale {result['scale']}: {result['about']}"
    )
    return f"{said} {result['note']}".strip()


def _trainings(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(row["name"], training) for row in result["rows"] for training in row["trainings"]]


def _row(values: list[Any]) -> str:
    return "| " + " | ".join(str(value).replace("|", "\\|").replace("\n", " ") for value in values) + " |"
