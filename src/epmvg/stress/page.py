"""The robustness page: a table of stresses, and pictures of the answers they cost."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from epmvg.data.photos import open_image
from epmvg.reporting.gallery import Photo, shrink
from epmvg.reporting.runs import Row
from epmvg.reporting.template import fill, percent, points
from epmvg.stress.ask import ABSENT, CLEAN, change_picture
from epmvg.stress.figures import surest, worst
from epmvg.stress.kind import Stress
from epmvg.stress.phrases import PHRASE_STRESSES
from epmvg.stress.pictures import PICTURE_STRESSES

PICTURES = 4  # of a stress: a row on a screen

EXPECTED = {"same": "same box", "identical": "identical box", "other": "another box"}


@dataclass(frozen=True, slots=True)
class Shown:
    """A photo as the model saw it, with boxes in the pixels of the original."""

    photo: Photo
    boxes: tuple[tuple[Sequence[float], str], ...]  # box and the style's name for it


@dataclass(frozen=True, slots=True)
class Card:
    """One question that a stress made the model get wrong."""

    asked: str
    phrase: str  # "" where the phrase was asked as it is
    file: str
    facts: tuple[str, ...]
    views: tuple[Shown, ...]


def render(run: str, result: Mapping[str, Any], rows: Mapping[str, Sequence[Row]]) -> str:
    """Return the page about one run as HTML; every phrase and file name is escaped."""
    clean = rows[CLEAN]
    galleries = [
        (
            stress.name,
            stress.expects,
            [_phrase_card(*both) for both in worst(stress, _of(rows, stress), clean, PICTURES)],
        )
        for stress in PHRASE_STRESSES
    ]
    galleries += [
        (
            stress.name,
            stress.expects,
            [
                _picture_card(stress, result["seed"], *both)
                for both in worst(stress, _of(rows, stress), clean, PICTURES)
            ],
        )
        for stress in PICTURE_STRESSES
    ]
    return fill(
        (resources.files("epmvg.stress") / "page.html").read_text(encoding="utf-8"),
        run=run,
        result=result,
        headline=_headline(result),
        expected=EXPECTED,
        galleries=[gallery for gallery in galleries if gallery[2]],
        absent=[_absent_card(row) for row in surest(rows.get(ABSENT, []), PICTURES)],
    )


def _of(rows: Mapping[str, Sequence[Row]], stress: Stress[Any, Any]) -> Sequence[Row]:
    return rows.get(stress.name, [])


def _headline(result: Mapping[str, Any]) -> str:
    """Say what hurts most of what should not hurt, and could be helped: a phrase that was cut was not read."""
    harmless = [row for row in result["stresses"] if row["n"] > row.get("cut", 0) and row["expects"] != "other"]
    lowest = min(harmless, key=lambda row: row["difference"]["points"], default=None)
    clean = f"{percent(result['clean']['acc50'])} of {result['clean']['n']:,} phrases are found"
    if lowest is None or lowest["difference"]["points"] >= 0:
        return f"{clean}, and no stress lowers that."
    gap, name = lowest["difference"], lowest["name"]
    return (
        f"{clean}; “{name}” costs most, {points(gap['points'])} points ({points(gap['low'])} to {points(gap['high'])})."
    )


def _phrase_card(before: Row, now: Row) -> Card:
    picture = open_image(Path(now["image"]))
    boxes = ((before["target"], "truth"), (before["box"], "found-0"), (now["box"], "found-1"))
    return _card(before, now, (Shown(shrink(picture, picture.size), boxes),))


def _picture_card(stress: Stress[Any, Any], seed: int, before: Row, now: Row) -> Card:
    photo = Path(now["image"])
    picture = open_image(photo)
    changed = change_picture(stress, photo, picture, seed)
    assert changed is not None  # the row was made of it
    seen = open_image(io.BytesIO(changed)) if isinstance(changed, bytes) else changed
    target = (before["target"], "truth")
    clean = Shown(shrink(picture, picture.size), (target, (before["box"], "found-0")))
    return _card(before, now, (clean, Shown(shrink(seen, picture.size), (target, (now["box"], "found-1")))))


def _card(before: Row, now: Row, views: tuple[Shown, ...]) -> Card:
    phrase = now["phrase"] if now["asked"] != now["phrase"] else ""
    facts = (f"IoU {before['iou']:.2f} before, {now['iou']:.2f} now",)
    return Card(now["asked"], phrase, Path(now["image"]).name, facts, views)


def _absent_card(row: Row) -> Card:
    picture: Image.Image = open_image(Path(row["image"]))
    views = (Shown(shrink(picture, picture.size), ((row["box"], "found-1"),)),)
    return Card(row["asked"], "", Path(row["image"]).name, (f"score {row['score']:.2f}",), views)
