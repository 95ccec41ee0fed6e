"""Puts the page together: what is read, scored, drawn and chosen becomes one HTML text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from epmvg.core.calibration import BINS, Trust, measure_trust
from epmvg.core.types import InputError
from epmvg.evaluation.metrics import Row
from epmvg.evaluation.slices import groupings
from epmvg.evaluation.statistics import FEWEST_IMAGES, PairedDifference, accuracy, bootstrap, compare, mean_iou, pair
from epmvg.report.charts import Chart, accuracy_charts, iou_histogram, loss_charts, trust_charts
from epmvg.report.gallery import Card, make_comparison, make_gallery, plain
from epmvg.report.runs import Run, SplitName, is_number
from epmvg.report.template import count, fill, percent, points

THIN = "\N{NARROW NO-BREAK SPACE}"
COMPARED = 4  # phrases that are shown run beside run where none are asked for


@dataclass(frozen=True, slots=True)
class Score:
    """A mean in 0..1 with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int
    images: int

    @property
    def has_interval(self) -> bool:
        """Whether there are enough images for the interval to be shown."""
        return self.images >= FEWEST_IMAGES


@dataclass(frozen=True, slots=True)
class Result:
    """One run on one split."""

    run: int
    acc50: Score
    miou: Score
    images: int
    difference: PairedDifference | None  # from the first run, where both answered


@dataclass(frozen=True, slots=True)
class SliceRow:
    """One part of a split: Acc@0.5 a run, None where a run has no such row."""

    name: str
    n: int
    scores: list[Score | None]


@dataclass(frozen=True, slots=True)
class Section:
    """Everything about one split."""

    split: SplitName
    runs: list[int]  # numbers of the runs that answered it
    results: list[Result]
    protocol: str
    histogram: str
    slices: list[tuple[str, list[SliceRow]]]
    comparison: tuple[str, list[Card]]  # a title, and what is shown run beside run
    gallery: list[tuple[str, int, list[Card]]]
    trust: list[tuple[int, Trust]]  # of the runs whose scores differ from row to row
    trust_charts: list[Chart]

    @property
    def missing(self) -> int:
        """Cards whose photo could not be opened."""
        return sum(not card.photo.data for _, _, cards in self.gallery for card in cards)


def render(runs: Sequence[Run], gallery: int, phrases: Sequence[str]) -> str:
    """Return the page about some runs as HTML.

    Raises:
        InputError: no run answered one of `phrases`.
    """
    splits = sorted({split for run in runs for split in run.answers})
    pictures = max(1, gallery // len(splits)) if gallery else 0
    sections = [_section(runs, split, pictures, phrases) for split in splits]
    _check_found(phrases, sections)
    return fill(
        (resources.files("epmvg.report") / "page.html").read_text(encoding="utf-8"),
        {"clock": _clock, "setting": _setting},
        runs=runs,
        sections=sections,
        headline=_headline(runs, sections[0]),
        protocols=dict.fromkeys(section.protocol for section in sections if section.protocol),
        differing=_differing(runs),
        accuracy=accuracy_charts(runs),
        losses=loss_charts(runs),
        bins=BINS,
    )


def _check_found(phrases: Sequence[str], sections: Sequence[Section]) -> None:
    found = {plain(card.phrase) for section in sections for card in section.comparison[1]}
    for phrase in phrases:
        if plain(phrase) not in found:
            raise InputError(f"No phrase of the runs is {phrase!r}: give one that their predictions hold, whole.")


def _section(runs: Sequence[Run], split: SplitName, pictures: int, phrases: Sequence[str]) -> Section:
    numbers = [number for number, run in enumerate(runs) if split in run.answers]
    asked = [runs[number] for number in numbers]
    rows = [run.answers[split] for run in asked]
    scored = [number for number in numbers if _has_scores(runs[number].answers[split])]
    protocols = sorted({run.protocols[split] for run in asked if split in run.protocols})
    return Section(
        split=split,
        runs=numbers,
        results=[_result(runs, number, split) for number in numbers],
        protocol="; ".join(protocols),
        histogram=iou_histogram(list(zip(numbers, rows, strict=True)), split).svg,
        slices=_slices(rows),
        comparison=make_comparison(asked, split, min(pictures, COMPARED), phrases),
        gallery=make_gallery(asked, split, pictures),
        trust=[(n, measure_trust(runs[n].answers[split], runs[n].absent.get(split, []))) for n in scored],
        trust_charts=trust_charts([(n, runs[n].answers[split]) for n in scored]) if scored else [],
    )


def _has_scores(rows: Sequence[Row]) -> bool:
    """Say whether every row has a score and they are not all the same, which would say nothing."""
    return all(is_number(row.get("score")) for row in rows) and len({row["score"] for row in rows}) > 1


def _result(runs: Sequence[Run], number: int, split: SplitName) -> Result:
    rows = runs[number].answers[split]
    first = runs[0].answers.get(split, [])
    difference = compare(first, rows) if number and pair(first, rows) else None
    miou = Score(mean_iou(rows), *bootstrap(rows, score=lambda row: row["iou"]), len(rows), _images(rows))
    return Result(number, _score(rows), miou, _images(rows), difference)


def _score(rows: Sequence[Row]) -> Score:
    return Score(accuracy(rows), *bootstrap(rows), len(rows), _images(rows))


def _images(rows: Sequence[Row]) -> int:
    return len({row["image"] for row in rows})


def _slices(answers: Sequence[Sequence[Row]]) -> list[tuple[str, list[SliceRow]]]:
    """Score the parts of a split that its first run's rows show."""
    tables = []
    for grouping, names in groupings(answers[0]):
        parts = [[grouping.select(rows, name) for rows in answers] for name in names]
        tables.append(
            (
                grouping.title,
                [
                    SliceRow(name, len(part[0]), [_score(rows) if rows else None for rows in part])
                    for name, part in zip(names, parts, strict=True)
                ],
            )
        )
    return tables


def _headline(runs: Sequence[Run], section: Section) -> str:
    """Say in a sentence or two what the first split shows."""
    named = [(runs[result.run].name, result) for result in section.results]
    name, result = named[-1] if len(named) == 2 else max(named, key=lambda item: item[1].acc50.value)
    found = f"{name} finds {percent(result.acc50.value)} of the {count(result.acc50.n)} phrases of {section.split}"
    difference = result.difference
    if difference is None:
        return f"{found}, with a mean IoU of {percent(result.miou.value)}."
    interval = f"95% interval {points(difference.low)} to {points(difference.high)}"
    gap = points(difference.points)
    if not difference.clear:
        return f"{found}; {gap} points from {runs[0].name}, which may be chance ({interval})."
    more = "more" if difference.points > 0 else "fewer"
    return f"{found}, {abs(difference.points):.1f} points {more} than {runs[0].name} ({interval})."


def _differing(runs: Sequence[Run]) -> list[tuple[str, list[Any]]]:
    """List the settings that are not the same in all runs, a value a run."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in ("name", "about"))
    rows = [(key, [run.settings.get(key) for run in runs]) for key in keys]
    return [(key, values) for key, values in rows if any(value != values[0] for value in values)]


def _clock(seconds: float) -> str:
    """3 h 05 min, 12 min 30 s or 45 s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}{THIN}h {whole % 3600 // 60:02d}{THIN}min"
    return f"{whole // 60}{THIN}min {whole % 60:02d}{THIN}s" if whole >= 60 else f"{whole}{THIN}s"


def _setting(value: Any) -> str:
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)
