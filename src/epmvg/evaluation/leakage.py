"""Images that a run was trained on, found again by content under any name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from epmvg.config.settings import Recipe
from epmvg.core.locate import fetch
from epmvg.core.types import InputError
from epmvg.data.registry import open_samples


def training_images(run: Path | str) -> set[Path] | None:
    """Return the images of a run's training split, None where the run has no recipe or its data is not at hand."""
    config = fetch(run) / "config.yaml"
    if not config.exists():
        return None
    data = Recipe.load(config).data
    try:
        records = open_samples(data.name, split=data.train_split, root=data.root, split_key=data.split_key)
    except InputError:
        return None
    return {record.image for record in records}


def shared_images(images: Iterable[Path], others: Iterable[Path]) -> set[Path]:
    """Return those of `images` whose content, byte for byte, is that of one of `others`; missing files have none."""
    first, second = ({image: _size(image) for image in set(paths)} for paths in (images, others))
    sizes = set(first.values()) & set(second.values()) - {None}
    known = {_digest(image) for image, size in second.items() if size in sizes}  # few need be read
    return {image for image, size in first.items() if size in sizes and _digest(image) in known}


def _size(image: Path) -> int | None:
    try:
        return image.stat().st_size
    except OSError:
        return None


def _digest(image: Path) -> bytes:
    return hashlib.sha256(image.read_bytes()).digest()
