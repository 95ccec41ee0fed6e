"""Find missing splits, and images that are in two splits or in a list of images that evaluation must not contain."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path, PurePosixPath

from epmvg.data.readers.files import read_text_lines
from epmvg.data.validation.images import ImageInfo, similar_pairs
from epmvg.data.validation.issues import Issue, LocatedSample


def split_issues(
    located: Sequence[LocatedSample], images: Mapping[Path, ImageInfo], expected: Sequence[str] | None
) -> Iterator[Issue]:
    """Check that splits have samples and share no images.

    Args:
        located: all samples.
        images: of the samples.
        expected: the splits of a named data set; None for other data, which needs train and val, unless it has
            neither and is for evaluation alone.
    """
    counts = Counter(sample.split for _, sample in located)
    names = ", ".join(sorted(counts.keys() - {""}))
    missing = [name for name in expected or ("train", "val") if name != "trainval" and not counts[name]]
    if expected is None and not names:
        yield Issue("split-missing", note="no sample names a split" if counts else "there are no samples")
    elif expected is not None or len(missing) == 1:
        for name in missing:
            yield Issue("split-missing", note=f"{name} (there are {names})")
    if counts[""] and len(counts) > 1:
        for where, sample in located:
            if not sample.split:
                yield Issue("split-unnamed", where, "", sample.image, sample.phrase)
    yield from _shared_image_issues(located, images)


def _shared_image_issues(located: Sequence[LocatedSample], images: Mapping[Path, ImageInfo]) -> Iterator[Issue]:
    by_split: dict[str, dict[Path, str]] = {}  # split -> image -> where it is first
    for where, sample in located:
        by_split.setdefault(sample.split, {}).setdefault(sample.image, where)
    for first, second in combinations([name for name in by_split if name], 2):
        a, b = by_split[first], by_split[second]
        for image in a:
            if image in b:
                yield Issue("split-same-image", a[image], f"{first} and {second}", image)
        only_a = {image: images[image].hash for image in a if image not in b}
        only_b = {image: images[image].hash for image in b if image not in a}
        for image, other in similar_pairs(only_a, only_b):
            yield Issue("split-similar-image", a[image], f"{first} and {second}: looks like {other}", image)


def list_issues(located: Sequence[LocatedSample], file: Path) -> Iterator[Issue]:
    """Find images of evaluation splits in a text file of names, ids or paths, one per line.

    Names agree if their last parts do, or a number of five or more digits in them: 398214 is
    COCO_train2014_000000398214.jpg.

    Raises:
        InputError: the list cannot be read.
    """
    listed = {key: line for line in reversed(read_text_lines(file)) for key in _keys(line, is_id=True)}
    evaluated: dict[Path, str] = {}
    for where, sample in located:
        if "train" not in sample.split.lower():
            evaluated.setdefault(sample.image, where)
    for image, where in evaluated.items():
        line = next((listed[key] for key in _keys(image.name) if key in listed), None)
        if line is not None:
            yield Issue("list-same-image", where, f"in the list as {line}", image)


def _keys(name: str, *, is_id: bool = False) -> set[str]:
    """Return the name of an image without folders and suffix, and its long numbers; of an id every number."""
    stem = PurePosixPath(name.replace("\\", "/")).stem.lower()
    parts = [
        part
        for part in re.split(r"[^0-9a-z]+", stem)
        if part.isdigit() and (len(part) >= 5 or (is_id and part == stem))
    ]
    return {stem, *(f"#{part.lstrip('0')}" for part in parts)}
