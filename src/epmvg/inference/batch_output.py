"""What bulk prediction writes: JSON lines, COCO or Label Studio, and copies of the images with boxes drawn."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from epmvg.core.files import atomic_write, check_not_input, write_text
from epmvg.core.images import open_image
from epmvg.core.types import InputError, Prediction
from epmvg.data.readers.jsonl import json_line
from epmvg.inference.draw import draw_boxes, save_picture
from epmvg.inference.results import Predictions, to_coco, to_label_studio
from epmvg.inference.sources import Sources, is_rows
from epmvg.inference.unfinished import Finished, part_of

OutputFormat = Literal["jsonl", "coco", "label-studio"]

MAX_MESSAGES = 5
"""Different errors that are named at the end; the rows hold all of them."""

_COUNTED = {"error": "errors", "truncated": "truncated", "unknown": "unknown"}
"""Keys of a row, and the names under which rows that have them are counted."""

_DRAWN_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


def check_outputs(out: Path, sources: Sources, *, form: OutputFormat, draw: Path | str | None, overwrite: bool) -> None:
    """Reject outputs that cannot be written, or that would replace an input or somebody's file.

    Raises:
        InputError: they cannot be used.
    """
    suffix = ".jsonl" if form == "jsonl" else ".json"
    if out.suffix.lower() != suffix:
        kind = "JSON lines" if form == "jsonl" else f"{form} JSON"
        raise InputError(f"{out} would hold {kind}: end its name in {suffix}.")
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"{out} cannot be written: give a file's name in a folder that exists.")
    check_not_input(out, *sources.files)
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists: choose another --out, or delete it.")
    if draw is not None:
        _check_drawings(Path(draw), sources, is_new=not (overwrite or part_of(out).exists()))


def _check_drawings(folder: Path, sources: Sources, *, is_new: bool) -> None:
    if (folder.exists() and not folder.is_dir()) or not folder.absolute().parent.is_dir():
        raise InputError(f"{folder} cannot hold drawings: with --out, --draw names a folder beside existing ones.")
    searched = [file for file in sources.files if file.is_dir()]
    for source in [*searched, *(file.parent for file in sources.files if not is_rows(file))]:
        check_not_input(folder, source)
    check_not_input(folder, sources.base)
    if any(folder.resolve().is_relative_to(source.resolve()) for source in searched):
        raise InputError(f"{folder} lies in a folder that is searched for images: choose another --draw.")
    if is_new and folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: choose another --draw, or empty it.")


def write_outputs(
    out: Path,
    finished: Callable[[], Iterable[Finished]],
    *,
    form: OutputFormat,
    draw: Path | str | None,
    base: Path,
    bound: float | None,
) -> dict[str, Any]:
    """Write all rows, in order.

    Args:
        out: the file.
        finished: gives the rows, again with each call.
        form: of the file.
        draw: a folder for drawings, named as the images are below `base`.
        base: the folder that all images lie in.
        bound: the lowest score that is `found`, None where all are.

    Returns:
        rows, errors, cut and unknown (phrases), and messages, the first different errors.

    Raises:
        InputError: the disk refuses.
    """
    counts = {"rows": 0, "errors": 0, "truncated": 0, "unknown": 0}
    messages: dict[str, None] = {}
    images = _by_image(finished(), bound) if draw is not None or form != "jsonl" else []
    for about in images if draw is not None else []:
        _draw(about, Path(str(draw)), base)

    def rows() -> Iterator[dict[str, Any]]:
        for row, _ in finished():
            counts["rows"] += 1
            for key, name in _COUNTED.items():
                counts[name] += key in row
            if "error" in row:
                if len(messages) < MAX_MESSAGES:
                    messages[row["error"]] = None
            elif bound is not None or "unknown" in row:
                row["found"] = _is_found(row, bound)
            yield row

    if form == "jsonl":
        with atomic_write(out) as temporary, temporary.open("wb") as file:
            file.writelines(json_line(row) for row in rows())
    else:
        for _ in rows():
            pass
        write_text(out, json.dumps(to_coco(images) if form == "coco" else to_label_studio(images), ensure_ascii=False))
    return counts | {"messages": list(messages)}


def _by_image(finished: Iterable[Finished], bound: float | None) -> list[Predictions]:
    """Gather the predictions of each image, in the order in which images come first."""
    images: dict[str, Predictions] = {}
    for row, size in finished:
        if "error" not in row:
            name = row["image"]
            if name not in images:
                images[name] = Predictions([], partial(open_image, Path(name)), name, size)
            images[name].append(Prediction(row["phrase"], tuple(row["box"]), row["score"], _is_found(row, bound)))
    return list(images.values())


def _is_found(row: dict[str, Any], bound: float | None) -> bool:
    return "unknown" not in row and row["score"] >= (bound or 0.0)


def _draw(about: Predictions, folder: Path, base: Path) -> None:
    """Save a copy of an image with its boxes; an image that is no longer there is left out."""
    try:
        picture = open_image(Path(about.image))
    except InputError:
        return
    name = Path(os.path.relpath(about.image, base))
    if name.suffix.lower() not in _DRAWN_SUFFIXES:
        name = name.with_name(f"{name.name}.png")
    file = folder / name
    check_not_input(file, about.image)
    file.parent.mkdir(parents=True, exist_ok=True)
    found = about.found
    save_picture(draw_boxes(picture, [one.box for one in found], [one.phrase for one in found]), file)
