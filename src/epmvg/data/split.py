"""Split a data set into train, val and test by image; images that look the same are in the same split."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from epmvg.core.types import InputError, Sample
from epmvg.data.convert import reject_inputs, write_samples
from epmvg.data.readers.annotations import Skipped
from epmvg.data.readers.formats import format_of
from epmvg.data.registry import open_samples
from epmvg.data.validation.images import inspect_images, similar_pairs

SPLITS = ("train", "val", "test")


def split_data(
    name: str,
    fractions: str,
    target: Path,
    *,
    seed: int = 0,
    root: str | Path | None = None,
) -> dict[str, Any]:
    """Write a data set with new splits.

    Args:
        name: of a data set, or a file or folder; the splits of its samples are replaced.
        fractions: of the images in train/val or train/val/test: "0.8/0.1/0.1".
        target: the file or folder to write, in the format of its suffix.
        seed: of the order in which images are assigned.
        root: what image paths are relative to, as for `open_samples`.

    Returns:
        splits: images and phrases of each; to: the target; root: the folder that image paths in it are relative to;
        skipped and first_skipped: reason -> number of unusable samples, and the first of them.

    Raises:
        InputError: invalid fractions, fewer different images than splits, or as `open_samples`.
    """
    wanted = _parse_fractions(fractions)
    format_of(target)
    reject_inputs(target, name, root)
    skipped = Skipped()
    samples = open_samples(name, split=None, root=root, skipped=skipped)
    samples = assign_splits(samples, wanted, seed=seed)
    base = write_samples(target, samples, root)
    images = Counter({sample.image: sample.split for sample in samples}.values())
    phrases = Counter(sample.split for sample in samples)
    splits = {split: {"images": images[split], "phrases": phrases[split]} for split in wanted}
    result: dict[str, Any] = {"splits": splits, "to": str(target), "root": str(base)}
    return result | skipped.as_dict()


def assign_splits(samples: Sequence[Sample], fractions: dict[str, float], *, seed: int = 0) -> list[Sample]:
    """Return samples with new splits; `fractions` of their images add up to 1.

    Raises:
        InputError: there are fewer different images than splits.
    """
    split_of = _assign(_similar_groups(sorted({sample.image for sample in samples})), fractions, seed)
    return [replace(sample, split=split_of[sample.image]) for sample in samples]


def _parse_fractions(text: str) -> dict[str, float]:
    try:
        values = [float(part) for part in text.split("/")]
    except ValueError:
        values = []
    if len(values) not in (2, 3) or not (min(values) > 0 and abs(sum(values) - 1) <= 1e-6):  # NaN is neither
        raise InputError(
            f"The fractions {text!r} are not valid. Give train/val or train/val/test that add up to 1, as 0.8/0.1/0.1."
        )
    return dict(zip(SPLITS, values, strict=False))


def _similar_groups(images: Sequence[Path]) -> list[list[Path]]:
    """Group images that look the same, also by way of others; each unreadable image is a group of its own."""
    hashes = {image: info.hash for image, info in inspect_images(images).items()}
    group = {image: [image] for image in images}
    for one, other in similar_pairs(hashes, hashes):
        if group[one] is not group[other]:
            group[one] += group[other]
            group.update(dict.fromkeys(group[other], group[one]))
    return [group[image] for image in images if group[image][0] == image]


def _assign(groups: Sequence[Sequence[Path]], fractions: dict[str, float], seed: int) -> dict[Path, str]:
    """Assign each group to the split with most images missing; every split gets one."""
    if len(groups) < len(fractions):
        raise InputError(
            f"{len(groups)} images that look different are too few for {len(fractions)} splits. Give more images."
        )
    shuffled = random.Random(seed).sample(groups, len(groups))
    missing = {split: fraction * sum(map(len, groups)) for split, fraction in fractions.items()}
    empty = list(fractions)
    split_of = {}
    for group in shuffled:
        split = empty.pop() if empty else max(missing, key=lambda split: missing[split])
        missing[split] -= len(group)
        split_of.update(dict.fromkeys(group, split))
    return split_of
