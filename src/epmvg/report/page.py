"""The page of a report: metrics, charts and cards of runs, rendered by one template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined

from epmvg.core.types import InputError
from epmvg.evaluation.metrics import SLICINGS, Row, is_correct, slices
from epmvg.evaluation.samples import plain_phrase
from epmvg.evaluation.statistics import BINS, MIN_IMAGES, bootstrap, compare, confidence_metrics, pair
from epmvg.report.charts import color, confidence_charts, training_charts
from epmvg.report.gallery import make_comparison, make_gallery
from epmvg.report.runs import Run, is_number, split_order

COMPARED = 4  # phrases in the comparison where none are given


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean in 0..1 with its 95 % interval, which is None where there are too few images for it."""

    value: float
    interval: tuple[float, float] | None


def render(runs: Sequence[Run], gallery: int, phrases: Sequence[str]) -> str:
    """Return the page as HTML; every value is escaped.

    Raises:
        InputError: no run predicted one of `phrases`.
    """
    splits = sorted({split for run in runs for split in run.predictions}, key=split_order)
    images = max(1, gallery // len(splits)) if gallery else 0
    sections = [_section(runs, split, images, phrases) for split in splits]
    found = {plain_phrase(card.rows[0]["phrase"]) for section in sections for card in section["comparison"].cards}
    for phrase in phrases:
        if plain_phrase(phrase) not in found:
            raise InputError(f"No run predicted the phrase {phrase!r}. Give a whole phrase of their predictions.")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "points": points, "color": color, "setting": setting}
    template, style = (
        (resources.files("epmvg.report") / name).read_text(encoding="utf-8") for name in ("page.html", "style.css")
    )
    page = environment.from_string(template).render(
        runs=runs,
        sections=sections,
        headline=_headline(runs, sections[0]),
        differing=_differing(runs),
        charts=training_charts(runs),
        bins=BINS,
        style=style,
    )
    return page.strip() + "\n"


def _section(runs: Sequence[Run], split: str, images: int, phrases: Sequence[str]) -> dict[str, Any]:
    """Return what the page shows of one split; `slices` are (title, [(name, phrases, Acc@0.5 per run)])."""
    numbers = [number for number, run in enumerate(runs) if split in run.predictions]
    own = [runs[number] for number in numbers]
    rows = [(number, runs[number].predictions[split]) for number in numbers]
    scored = [(number, part) for number, part in rows if _has_scores(part)]
    return {
        "split": split,
        "protocol": "; ".join(sorted({run.protocols[split] for run in own} - {""})),
        "results": [_result(runs, number, split) for number in numbers],
        "slices": _slices([part for _, part in rows]),
        "charts": confidence_charts(scored) if scored else [],
        "comparison": make_comparison(own, split, min(images, COMPARED), phrases),
        "gallery": make_gallery(own, split, images),
    }


def _has_scores(rows: Sequence[Row]) -> bool:
    """Return whether all rows have a score, and not all the same."""
    return all(is_number(row.get("score")) for row in rows) and len({row["score"] for row in rows}) > 1


def _result(runs: Sequence[Run], number: int, split: str) -> dict[str, Any]:
    """Return the results of one run on a split; `difference` is from the first run, on phrases of both."""
    rows, first = runs[number].predictions[split], runs[0].predictions.get(split, [])
    return {
        "run": number,
        "phrases": len(rows),
        "images": len({row["image"] for row in rows}),
        "acc50": _mean(rows, is_correct),
        "miou": _mean(rows, lambda row: float(row["iou"])),
        "difference": compare(first, rows) if number and pair(first, rows) else None,
        "confidence": confidence_metrics(rows, runs[number].negatives[split]) if _has_scores(rows) else None,
    }


def _mean(rows: Sequence[Row], value: Callable[[Row], float]) -> Mean:
    enough = len({row["image"] for row in rows}) >= MIN_IMAGES
    return Mean(sum(map(value, rows)) / len(rows), bootstrap(rows, value=value) if enough else None)


def _slices(parts: Sequence[Sequence[Row]]) -> list[tuple[str, list[Any]]]:
    """Compute Acc@0.5 of the slices that the first run's rows show, for every run."""
    tables = []
    for title, first in slices(parts[0]).items():
        names_of = SLICINGS[title].names_of
        table = []
        for name, rows in first.items():
            by_run = [[row for row in part if name in names_of(row)] for part in parts]
            table.append((name, len(rows), [_mean(part, is_correct) if part else None for part in by_run]))
        tables.append((title, table))
    return tables


def _headline(runs: Sequence[Run], section: dict[str, Any]) -> str:
    """Return the result on the first split in a sentence."""
    results = section["results"]
    result = results[-1] if len(results) == 2 else max(results, key=lambda one: one["acc50"].value)
    accuracy, phrases = percent(result["acc50"].value), result["phrases"]
    text = f"{runs[result['run']].name}: Acc@0.5 {accuracy} on {phrases:,} phrases of {section['split']}"
    difference = result["difference"]
    if difference is None:
        return f"{text}, mean IoU {percent(result['miou'].value)}."
    interval = f"95% interval {points(difference.low)} to {points(difference.high)}"
    doubt = "" if difference.significant else ", not significant"
    return f"{text}, {points(difference.points)} points from {runs[0].name} ({interval}{doubt})."


def _differing(runs: Sequence[Run]) -> list[tuple[str, list[Any]]]:
    """Return the settings that are not the same in all runs, with the value of each run."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in ("name", "about"))
    rows = [(key, [run.settings.get(key) for run in runs]) for key in keys]
    return [(key, values) for key, values in rows if any(value != values[0] for value in values)]


def percent(fraction: float) -> str:
    """Return 0.123 as 12.3%."""
    return f"{100 * fraction:.1f}%"


def points(difference: float) -> str:
    """Return a difference with its sign, +1.2."""
    return f"{difference:+.1f}".replace("-", "\N{MINUS SIGN}")


def setting(value: Any) -> str:
    """Return a value of a recipe as YAML writes it; a dash for null."""
    if value is None:
        return "\N{EN DASH}"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
