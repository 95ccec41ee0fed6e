"""Read the samples of a data check; find malformed ones, duplicates and phrases with several boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from epmvg.core.types import Box, InputError, Sample
from epmvg.data.registry import located_samples
from epmvg.data.validation.issues import Issue

Located = tuple[str, Sample]
"""Where a sample is ("line 12"), and the sample."""


def read_samples(data: str, root: Path | str | None) -> tuple[list[Located], list[Issue]]:
    """Read all samples of a data set, and an issue for each that cannot be read.

    Raises:
        InputError: the data set cannot be read at all.
    """
    located: list[Located] = []
    issues: list[Issue] = []
    for place, sample in located_samples(data, root=root):
        where = place.removeprefix(f"{Path(data)} ")
        if isinstance(sample, InputError):
            issues.append(Issue("sample-malformed", where, str(sample).removeprefix(place).lstrip(": ")))
        else:
            located.append((where, sample))
    return located, issues


def sample_issues(located: Sequence[Located]) -> Iterator[Issue]:
    """Find duplicate samples and ids, and phrases with different boxes in one image."""
    seen: set[tuple[object, ...]] = set()
    by_id: dict[str, tuple[object, ...]] = {}
    by_phrase: dict[tuple[Path, str], tuple[str, Box]] = {}
    ambiguous: set[tuple[Path, str]] = set()
    for where, sample in located:
        content = (sample.image, sample.phrase, sample.box)
        annotation_id = sample.extra.get("ann_id")  # phrases may share it, boxes may not
        name, named = (sample.id, content) if sample.id else (f"ann_id {annotation_id}", (sample.image, sample.box))
        if (sample.id or annotation_id is not None) and by_id.setdefault(name, named) != named:
            yield Issue("id-duplicate", where, f"id {name}", sample.image, sample.phrase)
        if (*content, sample.split) in seen:
            yield Issue("sample-duplicate", where, "", sample.image, sample.phrase)
            continue
        seen.add((*content, sample.split))
        key = (sample.image, " ".join(sample.phrase.split()).casefold())
        first_where, first_box = by_phrase.setdefault(key, (where, sample.box))
        if first_box != sample.box and key not in ambiguous:
            ambiguous.add(key)
            yield Issue("phrase-two-boxes", where, f"another box at {first_where}", sample.image, sample.phrase)
