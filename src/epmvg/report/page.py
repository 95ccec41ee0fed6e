"""The page of a report: metrics, charts and cards of runs, rendered by one template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined

from epmvg.core.types import InputError
from epmvg.evaluation.metrics import SLICINGS, Row, slices
from epmvg.evaluation.statistics import (
    BINS,
    MIN_IMAGES,
    PairedDifference,
    accuracy,
    bootstrap,
    compare,
    confidence_metrics,
    pair,
)
from epmvg.report.charts import Chart, colour, confidence_charts, iou_histogram, training_charts
from epmvg.report.gallery import Group, make_comparison, make_gallery, plain
from epmvg.report.runs import Run, SplitName, is_number

COMPARED = 4  # phrases in the comparison where none are given


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean in 0..1 with its 95 % interval, which is None where there are too few images for it."""

    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Result:
    """One run on one split."""

    run: int
    phrases: int
    images: int
    acc50: Mean
    miou: Mean
    difference: PairedDifference | None  # from the first run, on phrases of both
    confidence: dict[str, float | None] | None  # None where all scores are equal


@dataclass(frozen=True, slots=True)
class Section:
    """Everything about one split."""

    split: SplitName
    protocol: str
    results: list[Result]
    slices: list[tuple[str, list[tuple[str, int, list[Mean | None]]]]]  # title, then name, phrases, Acc@0.5 per run
    charts: list[Chart]
    comparison: Group
    gallery: list[Group]


def render(runs: Sequence[Run], gallery: int, phrases: Sequence[str]) -> str:
    """Return the page as HTML; every value is escaped.

    Raises:
        InputError: no run predicted one of `phrases`.
    """
    splits = sorted({split for run in runs for split in run.predictions})
    images = max(1, gallery // len(splits)) if gallery else 0
    sections = [_section(runs, split, images, phrases) for split in splits]
    found = {plain(card.rows[0]["phrase"]) for section in sections for card in section.comparison.cards}
    for phrase in phrases:
        if plain(phrase) not in found:
            raise InputError(f"No run predicted the phrase {phrase!r}: give a whole phrase of their predictions.")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "points": points, "clock": clock, "colour": colour, "setting": setting}
    template, style = (
        (resources.files("epmvg.report") / name).read_text(encoding="utf-8") for name in ("page.html", "style.css")
    )
    values: dict[str, Any] = {"runs": runs, "sections": sections, "headline": _headline(runs, sections[0])}
    values |= {"differing": _differing(runs), "charts": training_charts(runs), "bins": BINS, "style": style}
    return environment.from_string(template).render(**values).strip() + "\n"


def _section(runs: Sequence[Run], split: SplitName, images: int, phrases: Sequence[str]) -> Section:
    numbers = [number for number, run in enumerate(runs) if split in run.predictions]
    own = [runs[number] for number in numbers]
    rows = [(number, runs[number].predictions[split]) for number in numbers]
    scored = [(number, part) for number, part in rows if _has_scores(part)]
    return Section(
        split=split,
        protocol="; ".join(sorted({run.protocols[split] for run in own} - {""})),
        results=[_result(runs, number, split) for number in numbers],
        slices=_slices([part for _, part in rows]),
        charts=[iou_histogram(rows, split), *(confidence_charts(scored) if scored else [])],
        comparison=make_comparison(own, split, min(images, COMPARED), phrases),
        gallery=make_gallery(own, split, images),
    )


def _has_scores(rows: Sequence[Row]) -> bool:
    """Return whether all rows have a score, and not all the same."""
    return all(is_number(row.get("score")) for row in rows) and len({row["score"] for row in rows}) > 1


def _result(runs: Sequence[Run], number: int, split: SplitName) -> Result:
    rows, first = runs[number].predictions[split], runs[0].predictions.get(split, [])
    images = len({row["image"] for row in rows})
    miou = sum(row["iou"] for row in rows) / len(rows)
    interval = bootstrap(rows, value=lambda row: row["iou"]) if images >= MIN_IMAGES else None
    return Result(
        run=number,
        phrases=len(rows),
        images=images,
        acc50=_accuracy(rows),
        miou=Mean(miou, interval),
        difference=compare(first, rows) if number and pair(first, rows) else None,
        confidence=confidence_metrics(rows, runs[number].negatives[split]) if _has_scores(rows) else None,
    )


def _accuracy(rows: Sequence[Row]) -> Mean:
    enough = len({row["image"] for row in rows}) >= MIN_IMAGES
    return Mean(accuracy(rows), bootstrap(rows) if enough else None)


def _slices(parts: Sequence[Sequence[Row]]) -> list[tuple[str, list[tuple[str, int, list[Mean | None]]]]]:
    """Compute Acc@0.5 of the slices that the first run's rows show, for every run."""
    tables = []
    for title, first in slices(parts[0]).items():
        names_of = SLICINGS[title].names_of
        selected = [(name, [[row for row in rows if name in names_of(row)] for rows in parts]) for name in first]
        table = [(name, len(rows[0]), [_accuracy(part) if part else None for part in rows]) for name, rows in selected]
        tables.append((title, table))
    return tables


def _headline(runs: Sequence[Run], section: Section) -> str:
    """Return the result on the first split in a sentence."""
    results = section.results
    result = results[-1] if len(results) == 2 else max(results, key=lambda one: one.acc50.value)
    name = runs[result.run].name
    text = f"{name}: Acc@0.5 {percent(result.acc50.value)} on {result.phrases:,} phrases of {section.split}"
    difference = result.difference
    if difference is None:
        return f"{text}, mean IoU {percent(result.miou.value)}."
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


def clock(seconds: float) -> str:
    """Return 3 h 05 min, or 12 min 30 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def setting(value: Any) -> str:
    """Return a value of a recipe as YAML writes it; a dash for null."""
    if value is None:
        return "\N{EN DASH}"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
