"""The figures as Markdown tables and one plot, for docs/performance.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from epmvg.core.files import write_json, write_text

COLUMNS = {
    "rows": {
        "preset": "preset",
        "backend": "backend",
        "precision": "precision",
        "phrases_per_image": "phrases an image",
        "ms_per_image": "ms an image (median)",
        "p95_ms": "p95",
        "phrases_per_s": "phrases/s",
        "peak_mb": "peak MB",
        "gflops_per_s": "GFLOP/s",
        "share_of_peak": "of matrix peak",
        "ratio_to_reference": "time against plain",
    },
    "batches": {
        "preset": "preset",
        "backend": "backend",
        "precision": "precision",
        "images": "images a batch",
        "images_per_s": "images/s",
    },
    "training": {
        "preset": "preset",
        "phrases_per_image": "phrases an image",
        "ms_per_phrase": "ms a phrase",
        "ratio_to_reference": "time against plain",
        "activation_mb": "activations MB",
        "activation_mb_checkpointed": "with checkpointing",
    },
    "loader": {
        "preset": "preset",
        "training_images_per_s": "training views, images/s",
        "evaluation_images_per_s": "evaluation views, images/s",
    },
    "sizes": {"preset": "preset", "backend": "backend", "precision": "precision", "mb": "MB"},
}


def write_figures(found: dict[str, Any], folder: Path) -> None:
    """Write bench.json, bench.md and bench.svg into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "bench.json", found)
    write_text(folder / "bench.md", tables(found))
    _plot(found["rows"], folder / "bench.svg")


def tables(found: dict[str, Any]) -> str:
    """Return every part as a Markdown table, the machine first."""
    about = found["machine"]
    peaks = ", ".join(f"{value} GFLOP/s in {name}" for name, value in about["peak_gflops"].items())
    lines = [
        f"{about['processor']}, {about['threads']} threads of {about['cores']} cores, torch {about['torch']}; "
        f"load before: {about['load']}; matrix peak: {peaks}."
    ]
    for part, columns in COLUMNS.items():
        if found[part]:
            lines += ["", *_table(found[part], columns)]
    lines += ["", *found["left_out"]] if found["left_out"] else []
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> list[str]:
    head = [" | ".join(columns.values()), " | ".join("---" for _ in columns)]
    body = [" | ".join(str(row[key]) for key in columns) for row in rows]
    return [f"| {line} |" for line in head + body]


def _plot(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw each row's time against the plain re-creation's: a panel a preset, a bar a number of phrases."""
    presets = list(dict.fromkeys(row["preset"] for row in rows))
    forms = list(dict.fromkeys((row["backend"], row["precision"]) for row in rows))
    across = min(3, len(presets)) or 1
    down = -(-len(presets) // across) or 1
    style: Any = {"svg.hashsalt": "epmvg", "font.size": 9}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(3.6 * across, 0.7 + (0.5 + 0.36 * len(forms)) * down), layout="constrained")
        panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flatten()
        for panel, preset in zip(panels, presets, strict=False):
            _bars(panel, [row for row in rows if row["preset"] == preset], forms)
            panel.set_title(preset)
            panel.tick_params(labelbottom=True)
        for panel in panels[len(presets) :]:
            panel.set_axis_off()
        panels[0].set_yticks(range(len(forms)), [" ".join(form) for form in forms])
        panels[0].invert_yaxis()
        panels[0].legend(loc="lower right", title="phrases an image")
        figure.supxlabel("time against the plain re-creation of the same work (1: as fast)")
        temporary = file.with_name(file.name + ".part")
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    temporary.replace(file)


def _bars(panel: Axes, rows: Sequence[dict[str, Any]], forms: list[tuple[str, str]]) -> None:
    counts = sorted({row["phrases_per_image"] for row in rows})
    thick = 0.8 / len(counts)
    for number, (count, shade) in enumerate(zip(counts, ("#3b6ea5", "#9dbbd8"), strict=True)):
        queries = [row for row in rows if row["phrases_per_image"] == count]
        places = [forms.index((row["backend"], row["precision"])) - 0.4 + thick * (number + 0.5) for row in queries]
        ratios = [row["ratio_to_reference"] for row in queries]
        bars = panel.barh(places, ratios, thick * 0.95, color=shade, label=str(count))
        panel.bar_label(bars, fmt="%.2f", padding=2, fontsize=7)
    panel.axvline(1, color="#333333", linewidth=0.8, linestyle="--")
    panel.margins(x=0.15)
