"""The same image where it must not be twice: in two splits, or in a list of what another model was trained on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path, PurePosixPath

from epmvg.data.readers.files import is_file, read_text_lines
from epmvg.data.validation.findings import Example, Findings, legible
from epmvg.data.validation.image_digest import find_twins, look
from epmvg.data.validation.images import Seen

_LEARNED = re.compile("train", re.IGNORECASE)
"""Splits that may stand in a list of pre-training images."""


def judge_splits(images: Iterable[Seen], splits: Sequence[str], found: Findings) -> None:
    """Note images that stand in two splits, by file and by look."""
    images = list(images)
    named = [(number, split) for number, split in enumerate(splits) if split]
    for seen in images:
        inside = [split for number, split in named if seen.splits >> number & 1]
        if len(inside) > 1:
            example = Example(seen.where, legible(" and ".join(inside)), legible(seen.name))
            found.add("split-same-image", example, unit="images")
    seeing = [seen for seen in images if seen.photo.greys]
    for (first, one_split), (second, other_split) in combinations(named, 2):
        parts = (
            [seen for seen in seeing if seen.splits >> number & 1 and not seen.splits >> opposite & 1]
            for number, opposite in ((first, second), (second, first))
        )
        ours, theirs = sorted(parts, key=len)
        for i, j in find_twins([seen.photo.greys for seen in ours], [seen.photo.greys for seen in theirs]):
            one, other = ours[i], theirs[j]
            note = legible(f"{one_split} and {other_split}: {one.name} and {other.name}", 300)
            example = Example(one.where, note, legible(one.name))
            found.add("split-same-look", example, unit="images")


def judge_list(images: Iterable[Seen], splits: Sequence[str], file: Path, found: Findings) -> None:
    """Note images of evaluation splits that stand in a text file of names or ids, one a line, by name and by look.

    Names agree if their last parts do, or a number of five digits or more in them does: 398214,
    COCO_train2014_000000398214.jpg and images/coco_398214.jpg are one image. Lines that are paths of photos, seen from
    the list's folder, are compared by look as well.

    Raises:
        InputError: the list cannot be read.
    """
    lines = read_text_lines(file)
    named = {key: line for line in reversed(lines) for key in _keys(line, listed=True)}
    learned = sum(1 << number for number, split in enumerate(splits) if _LEARNED.search(split))
    asked = [seen for seen in images if seen.splits & ~learned]
    by_name = set()
    for seen in asked:
        match = next((named[key] for key in _keys(seen.name, listed=False) if key in named), None)
        if match is not None:
            by_name.add(seen.name)
            example = Example(seen.where, f"in the list as {legible(match)}", legible(seen.name))
            found.add("list-same-image", example, unit="images")
    listed = [(line, look(path)) for line in lines if is_file(path := file.parent / line)]
    listed = [one for one in listed if one[1].greys]
    asked = [seen for seen in asked if seen.photo.greys and seen.name not in by_name]
    for i, j in find_twins([seen.photo.greys for seen in asked], [photo.greys for _, photo in listed]):
        seen, (line, _) = asked[i], listed[j]
        example = Example(seen.where, f"looks like {legible(line)}", legible(seen.name))
        found.add("list-same-look", example, unit="images")


def _keys(name: str, *, listed: bool) -> set[str]:
    """Return what an image is known by: its name without folders and ending, and long numbers in it."""
    stem = PurePosixPath(name.replace("\\", "/")).stem.lower()
    numbers = {part.lstrip("0") for part in re.split(r"[^0-9a-z]+", stem) if part.isdigit() and len(part) >= 5}
    if listed and stem.isdigit():
        numbers.add(stem.lstrip("0"))
    return {stem, *(f"#{number}" for number in numbers)}
