"""Deal images out to train, val and test: all rows of an image, and images that look alike, go to one of them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from epmvg.core.types import InputError
from epmvg.data.convert import reject_inputs, write_samples
from epmvg.data.readers.annotations import Skipped
from epmvg.data.readers.formats import format_of
from epmvg.data.registry import open_samples
from epmvg.data.validation.image_digest import groups_of, look

SPLITS = ("train", "val", "test")


def split_data(
    name: str,
    fractions: str,
    target: Path,
    *,
    seed: int = 0,
    root: str | Path | None = None,
) -> dict[str, Any]:
    """Write a data set anew with each row's `split` set by its image.

    Args:
        name: a data set's name, or a file or folder; splits that its rows name are replaced.
        fractions: of the images, train/val or train/val/test: "0.8/0.1/0.1".
        target: the file or folder to write, in the format that its ending means.
        seed: of the order in which images are dealt out.
        root: what image paths are relative to, as for `open_records`.

    Returns:
        images and rows of each split, to (the target), root (the folder that image paths there are relative to),
        skipped: reason -> rows that cannot be used, first_skipped: reason -> the first of them.

    Raises:
        InputError: fractions that are none, fewer images than splits, or as `open_records`.
    """
    shares = _shares(fractions)
    format_of(target)  # which rejects an ending that means none
    reject_inputs(target, name, root)
    skipped = Skipped()
    records = open_samples(name, split=None, root=root, skipped=skipped)
    images = sorted({record.image for record in records})
    groups = _alike(images)
    split_of = _deal(groups, shares, seed)
    dealt = [
        replace(
            record,
            split=split_of[record.image],
            extra={key: value for key, value in record.extra.items() if key != "split"},
        )
        for record in records
    ]
    base = write_samples(target, dealt, root)
    of_images, of_rows = Counter(split_of.values()), Counter(record.split for record in dealt)
    splits = {split: {"images": of_images[split], "phrases": of_rows[split]} for split in shares}
    lost = {"skipped": dict(skipped.counts), "first_skipped": dict(skipped.first)}
    return {"splits": splits, "to": str(target), "root": str(base)} | lost


def _shares(fractions: str) -> dict[str, float]:
    try:
        shares = [float(part) for part in fractions.split("/")]
    except ValueError:
        shares = []
    if len(shares) not in (2, 3) or not all(share > 0 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise InputError(
            f"{fractions!r} is no division: give fractions of train/val or train/val/test that add up to 1, for example"
            " 0.8/0.1/0.1."
        )
    return dict(zip(SPLITS, shares, strict=False))


def _alike(images: Sequence[Path]) -> list[list[Path]]:
    """Group images that look the same; one that cannot be opened is a group of its own."""
    with ThreadPoolExecutor() as pool:
        photos = list(pool.map(look, images))
    seen = [number for number, photo in enumerate(photos) if photo.greys]
    groups: dict[int, list[Path]] = {}
    labels = groups_of([photos[number].greys for number in seen])
    for number, label in zip(seen, labels, strict=True):
        groups.setdefault(label, []).append(images[number])
    return [*groups.values(), *([images[number]] for number, photo in enumerate(photos) if not photo.greys)]


def _deal(groups: list[list[Path]], shares: dict[str, float], seed: int) -> dict[Path, str]:
    """Give each group to the split that lacks most images; every split gets one."""
    if len(groups) < len(shares):
        raise InputError(f"{len(groups)} images that differ cannot be dealt out to {len(shares)} splits: give more.")
    order = sorted(groups, key=lambda group: group[0])
    random.Random(seed).shuffle(order)
    lacking = {split: share * sum(map(len, groups)) for split, share in shares.items()}
    empty = list(shares)
    split_of = {}
    for group in order:
        split = empty.pop() if empty else max(lacking, key=lambda split: lacking[split])
        lacking[split] -= len(group)
        split_of.update(dict.fromkeys(group, split))
    return split_of
