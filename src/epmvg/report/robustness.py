"""The robustness page of a run: a table of perturbations, and images whose boxes they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from epmvg.core.images import open_image
from epmvg.evaluation.metrics import Row
from epmvg.evaluation.perturbations import IMAGE_PERTURBATIONS, PHRASE_PERTURBATIONS, Perturbation
from epmvg.evaluation.robustness import ABSENT, CLEAN, perturb_image, surest, worst
from epmvg.report.gallery import Photo, shrink
from epmvg.report.template import fill, percent, points

EXAMPLES = 4  # of a perturbation: a row on a screen


@dataclass(frozen=True, slots=True)
class Shown:
    """An image as the model saw it, with boxes in the pixels of the original."""

    photo: Photo
    boxes: tuple[tuple[Sequence[float], str], ...]  # box and the style's name for it


@dataclass(frozen=True, slots=True)
class Card:
    """One query that a perturbation made the model get wrong."""

    queried: str
    phrase: str  # "" where the phrase was queried as it is
    file: str
    facts: tuple[str, ...]
    views: tuple[Shown, ...]


def robustness_page(run: str, result: Mapping[str, Any], rows: Mapping[str, Sequence[Row]]) -> str:
    """Return the page about one run as HTML; every phrase and file name is escaped."""
    clean = rows[CLEAN]
    galleries = [
        (
            each.name,
            each.expects,
            [_phrase_card(*both) for both in worst(each, rows.get(each.name, []), clean, EXAMPLES)],
        )
        for each in PHRASE_PERTURBATIONS
    ]
    galleries += [
        (
            each.name,
            each.expects,
            [
                _image_card(each, result["seed"], *both)
                for both in worst(each, rows.get(each.name, []), clean, EXAMPLES)
            ],
        )
        for each in IMAGE_PERTURBATIONS
    ]
    return fill(
        (resources.files("epmvg.report") / "robustness.html").read_text(encoding="utf-8"),
        run=run,
        result=result,
        headline=_headline(result),
        expected={"same": "same box", "other": "another box"},
        galleries=[gallery for gallery in galleries if gallery[2]],
        absent=[_absent_card(row) for row in surest(rows.get(ABSENT, []), EXAMPLES)],
    )


def _headline(result: Mapping[str, Any]) -> str:
    """State which perturbation costs most of those that should change nothing."""
    harmless = [row for row in result["perturbations"] if row["n"] and row["expects"] == "same"]
    lowest = min(harmless, key=lambda row: row["difference"]["points"], default=None)
    clean = f"{percent(result['clean']['acc50'])} of {result['clean']['n']:,} phrases are found"
    if lowest is None or lowest["difference"]["points"] >= 0:
        return f"{clean}, and no perturbation lowers that."
    gap, name = lowest["difference"], lowest["name"]
    return (
        f"{clean}; “{name}” costs most, {points(gap['points'])} points ({points(gap['low'])} to {points(gap['high'])})."
    )


def _phrase_card(before: Row, now: Row) -> Card:
    picture = open_image(Path(now["image"]))
    boxes = ((before["target"], "truth"), (before["box"], "found-0"), (now["box"], "found-1"))
    return _card(before, now, (Shown(shrink(picture, picture.size), boxes),))


def _image_card(perturbation: Perturbation[Image.Image], seed: int, before: Row, now: Row) -> Card:
    path = Path(now["image"])
    image = open_image(path)
    changed = perturb_image(perturbation, image, path, seed)
    assert changed is not None  # the row was made of it
    target = (before["target"], "truth")
    clean = Shown(shrink(image, image.size), (target, (before["box"], "found-0")))
    return _card(before, now, (clean, Shown(shrink(changed, image.size), (target, (now["box"], "found-1")))))


def _card(before: Row, now: Row, views: tuple[Shown, ...]) -> Card:
    phrase = now["phrase"] if now["queried"] != now["phrase"] else ""
    facts = (f"IoU {before['iou']:.2f} before, {now['iou']:.2f} now",)
    return Card(now["queried"], phrase, Path(now["image"]).name, facts, views)


def _absent_card(row: Row) -> Card:
    image = open_image(Path(row["image"]))
    views = (Shown(shrink(image, image.size), ((row["box"], "found-1"),)),)
    return Card(row["queried"], "", Path(row["image"]).name, (f"score {row['score']:.2f}",), views)
