"""The doctor's page: every kind of finding, with pictures of examples, in one HTML file."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from epmvg.doctor.findings import Example, legible
from epmvg.reporting.gallery import Photo, thumbnail
from epmvg.reporting.template import fill, write
from epmvg.types import Box, InputError

if TYPE_CHECKING:
    from epmvg.doctor import Diagnosis


@dataclass(frozen=True, slots=True)
class View:
    """A photo and boxes, with room for boxes that leave it, in pixels of the photo."""

    photo: Photo
    boxes: tuple[Box, ...]
    left: float
    top: float
    width: float
    height: float


def write_page(diagnosis: Diagnosis, out: Path | str) -> Path:
    """Write one self-contained HTML page about a diagnosis and return its path.

    Raises:
        InputError: `out` is a folder.
    """
    out = Path(out)
    if out.is_dir():
        raise InputError(f"{out} is a folder: name the HTML file, for example {out / 'doctor.html'}.")
    errors = sum(one.count for one in diagnosis.findings if one.kind.weight == "error")
    warnings = sum(one.count for one in diagnosis.findings) - errors
    html = fill(
        (resources.files("epmvg.doctor") / "page.html").read_text(encoding="utf-8"),
        data=legible(diagnosis.data, 300),
        headline=f"{errors:,} errors and {warnings:,} warnings" if diagnosis.findings else "Nothing was found",
        diagnosis=diagnosis,
        splits=[(legible(name), split) for name, split in diagnosis.splits.items()],
        shown=[(one, [(example, _views(example)) for example in one.examples]) for one in diagnosis.findings],
    )
    write(html, out)
    return out


def _views(example: Example) -> list[View]:
    views = []
    for file in example.files:
        try:
            photo = thumbnail(file)
        except InputError:
            continue  # gone since it was looked at
        boxes = example.boxes
        sides = [(0.0, 0.0, photo.width, photo.height), *boxes]
        left, top = (max(min(min(box[k], box[k + 2]) for box in sides), -side) for k, side in _sides(photo))
        right, bottom = (min(max(max(box[k], box[k + 2]) for box in sides), 2 * side) for k, side in _sides(photo))
        views.append(View(photo, boxes, left, top, right - left, bottom - top))
    return views


def _sides(photo: Photo) -> tuple[tuple[int, float], tuple[int, float]]:
    return (0, photo.width), (1, photo.height)
