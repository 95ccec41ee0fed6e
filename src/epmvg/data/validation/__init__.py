"""`epmvg data check`: find what is missing, broken, duplicated or leaked in a data set."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from epmvg.core.files import check_not_input
from epmvg.core.types import InputError, Progress
from epmvg.data.convert import reject_inputs, write_samples
from epmvg.data.registry import DATASETS
from epmvg.data.validation.boxes import box_issues
from epmvg.data.validation.images import image_issues, inspect_images
from epmvg.data.validation.issues import KINDS, CheckReport, Issue, LocatedSample, by_kind
from epmvg.data.validation.samples import phrase_issues, read_samples, sample_issues
from epmvg.data.validation.splits import list_issues, split_issues

__all__ = ["CheckReport", "check"]


def check(
    data: str,
    *,
    root: Path | str | None = None,
    against: Path | str | None = None,
    clean: Path | str | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Check every sample and image of a data set.

    Args:
        data: a name of `epmvg list datasets`, or a file or folder.
        root: the folder of the data set; for a file, the folder that its image paths are relative to.
        against: a text file of image names or ids, one per line, that evaluation must not contain.
        clean: a file or folder to write the samples without errors to, each once, in the format of its suffix.
        progress: called with (images read, all images).

    Raises:
        InputError: the data or the list cannot be read, or no sample without errors can be written.
    """
    start = time.perf_counter()
    if clean is not None:
        check_not_input(clean, against)
        reject_inputs(Path(clean), data, root)
    located, issues = read_samples(data, root)
    images = inspect_images(list(dict.fromkeys(sample.image for _, sample in located)), progress)
    issues += sample_issues(located)
    issues += phrase_issues(located)
    issues += box_issues(located, images)
    issues += image_issues(located, images)
    issues += split_issues(located, images, DATASETS[data].splits if data in DATASETS else None)
    if against is not None:
        issues += list_issues(located, Path(against))
    written = None if clean is None else _write_clean(Path(clean), located, issues, root)
    splits: dict[str, dict[str, int]] = {}
    for split in dict.fromkeys(sample.split for _, sample in located):
        members = [sample.image for _, sample in located if sample.split == split]
        splits[split] = {"images": len(set(members)), "phrases": len(members)}
    seconds = time.perf_counter() - start
    return CheckReport(data, len(located), len(images), splits, by_kind(issues), seconds, written)


def _write_clean(
    target: Path, located: Sequence[LocatedSample], issues: Sequence[Issue], root: Path | str | None
) -> int:
    """Write the samples without errors, each once, and return their number."""
    errors = [issue for issue in issues if KINDS[issue.kind].severity == "error"]
    if any(issue.kind == "box-convention" for issue in errors):
        kind = KINDS["box-convention"]
        raise InputError(f"{target} was not written: {kind.title}. {kind.fix}")
    bad = {issue.where for issue in errors if not issue.kind.startswith("image-")}
    bad_images = {issue.image for issue in errors if issue.kind.startswith("image-")}
    kept = {
        (sample.image, sample.phrase, sample.box, sample.split, sample.id): sample
        for where, sample in located
        if where not in bad and sample.image not in bad_images
    }
    if not kept:
        raise InputError(f"{target} was not written: all samples have errors.")
    write_samples(target, list(kept.values()), root)
    return len(kept)
