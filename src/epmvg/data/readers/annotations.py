"""From annotations to samples and back: which are usable, and a count of those that are skipped."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from epmvg.core.files import is_encodable
from epmvg.core.types import InputError, Sample
from epmvg.data.readers.fields import (
    Annotation,
    name_of,
    require,
    require_box,
    size_of,
    to_xywh,
    weight_of,
)
from epmvg.data.readers.files import relative_to
from epmvg.data.readers.image_finder import ImageFinder

T = TypeVar("T")
Located = Iterator[tuple[str, T | InputError]]
"""Pairs of a location (file and line or number) and what is there, or what is wrong with it."""

MALFORMED = "the annotation is malformed"  # reason in `Skipped` of annotations that cannot be parsed
MAX_WORDS = 100  # of a phrase; a longer one is a document in the wrong column (the published sets stay under 60)


@dataclass(slots=True)
class Skipped:
    """Annotations that could not be used, counted by reason, with the first of each reason."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, location: str) -> None:
        self.counts[reason] += 1
        self.first.setdefault(reason, location)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: reason -> count, and reason -> the first."""
        return {"skipped": dict(self.counts), "first_skipped": dict(self.first)}

    def __str__(self) -> str:
        return "; ".join(
            f"{count} annotation{'s' * (count > 1)} skipped: {reason} (first: {self.first[reason]})"
            for reason, count in self.counts.items()
        )


def parsed(location: str, parts: Iterable[T]) -> Located[T]:
    """Yield what a generator makes of one part of a file, or the InputError that it raises, with its location."""
    try:
        whole = list(parts)
    except InputError as error:
        yield location, error
        return
    yield from ((location, one) for one in whole)


def to_samples(
    annotations: Located[Annotation], root: Path, split_key: str, *, split: str | None = None
) -> Located[Sample]:
    """Yield (location, sample or what is wrong with its annotation).

    Args:
        root: the folder that image paths are relative to and stay in.
        split: keep only annotations whose `split_key` has this value; None keeps all.
    """
    find = ImageFinder(root)
    for location, annotation in annotations:
        if isinstance(annotation, InputError):
            yield location, annotation
            continue
        try:
            if split is None or name_of(annotation, split_key, location) == split:
                yield location, _sample(annotation, find, location, split_key)
        except InputError as error:
            yield location, error


def _sample(annotation: Annotation, find: ImageFinder, location: str, split_key: str) -> Sample:
    x, y, w, h = require_box(annotation, "bbox", location)
    known = {"image", "phrase", "bbox", "width", "height", "id", "weight"}
    if split_key == "split":  # else both it and the annotation's own "split" are kept
        known.add("split")
    return Sample(
        image=find(annotation.get("image"), location),
        phrase=require(annotation, "phrase", str, location),
        box=(x, y, x + w, y + h),
        split=name_of(annotation, split_key, location),
        id=name_of(annotation, "id" if "id" in annotation else "source_id", location),
        size=size_of(annotation.get("width"), annotation.get("height"), location),
        extra={key: value for key, value in annotation.items() if key not in known},
        weight=weight_of(annotation, location),
    )


def collect(samples: Located[Sample], skipped: Skipped | None) -> list[Sample]:
    """Return the usable ones of some samples.

    Args:
        skipped: collects samples that cannot be used, which otherwise raise.

    Raises:
        InputError: a sample cannot be used.
    """
    usable = []
    for location, sample in samples:
        if isinstance(sample, InputError):
            if skipped is None:
                raise sample
            skipped.add(MALFORMED, str(sample))
            continue
        reason = _sample_error(sample)
        if reason is None:
            usable.append(sample)
        elif skipped is None:
            raise InputError(f"{location}: {reason}. Fix or delete the annotation.")
        else:
            skipped.add(reason, location)
    return usable


def _sample_error(sample: Sample) -> str | None:
    """Return what makes a sample unusable, or None."""
    x0, y0, x1, y1 = sample.box
    if not all(math.isfinite(value) for value in sample.box):
        return "the box holds a value that is not a number"
    if x1 - x0 <= 0 or y1 - y0 <= 0:
        return "the box is empty or inverted"
    if sample.size is not None:
        width, height = sample.size
        if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
            return "the box lies outside its image"
    return phrase_error(sample.phrase)


def phrase_error(phrase: str) -> str | None:
    """Return what makes a phrase unusable, or None."""
    if not phrase.strip():
        return "the phrase is empty"
    if not is_encodable(phrase):
        return "the phrase holds an unpaired surrogate"
    if len(phrase.split()) > MAX_WORDS:
        return f"the phrase has {len(phrase.split())} words, more than {MAX_WORDS}"
    return None


def to_annotations(samples: Iterable[Sample], base: Path) -> Iterator[Annotation]:
    """Turn samples into annotations whose image paths are relative to `base`, absolute where they lie elsewhere."""
    names: dict[Path, str] = {}
    for sample in samples:
        name = names.get(sample.image)
        if name is None:
            name = names[sample.image] = relative_to(sample.image, base) or sample.image.absolute().as_posix()
        annotation: Annotation = {"image": name, "phrase": sample.phrase, "bbox": to_xywh(sample.box)}
        if sample.size is not None:
            annotation["width"], annotation["height"] = sample.size
        if sample.weight != 1:
            annotation["weight"] = sample.weight
        named = {"split": sample.split, "id": sample.id}
        # The annotation's own "split" where another key names the split.
        extra = {"attributes.split" if key == "split" else key: value for key, value in sample.extra.items()}
        yield annotation | {key: value for key, value in named.items() if value} | extra
