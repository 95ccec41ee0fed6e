"""Features of a frozen backbone, kept on disk: each image is opened and encoded once, ever.

A file is named by all that its values depend on: the images' bytes, the image size, the backbone with its settings and
weights, and how they were computed. It states its shape, and another one is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from epmvg.core.files import atomic_write, disk_errors
from epmvg.core.types import InputError, Sample
from epmvg.data.loader import GroundingLoader
from epmvg.models.grounder import Grounder
from epmvg.models.weights_file import fingerprint

_FORMAT = "2: computed in float32, kept in bfloat16"
"""Part of every key; raise its number when the features or the evaluation view come to have other values."""

_NOT_OURS = ("width", "layers", "heads", "dim_feedforward", "dropout", "frozen")
"""Settings of a visual branch that its backbone's features do not depend on."""

_ABANDONED = 86_400  # seconds after which a temporary file is nobody's any more

_Values = NDArray[np.uint16]  # the bits of bfloat16 [images, C, h, w]


def stored_maps(
    student: Grounder,
    splits: Sequence[Sequence[Sample]],
    folder: Path,
    limit_gb: float,
    report: Callable[[dict[str, Any]], None],
) -> list[Tensor]:
    """Return the frozen backbone's features of the images of each split.

    Args:
        student: its backbone must be frozen.
        splits: the images of each, in order of first appearance, index its array.
        folder: where the files lie.
        limit_gb: what `folder` may hold; files that were used longest ago are removed for new ones.
        report: called with rows of progress.

    Returns:
        bfloat16 [images, C, h, w] of each split, memory-mapped.

    Raises:
        InputError: the splits alone would take more than `limit_gb`, an image cannot be opened, or a file is damaged.
    """
    loaders = [_loader(records, student) for records in splits]
    with torch.no_grad():
        first = next(iter(loaders[0].batches(0)))
        one = student.visual_encoder.backbone_features(
            first.images[:1].to(student.visual_encoder.mean.device), first.image_mask[:1]
        )
    files = [folder / f"maps-{_key(student, loader.images)}.npy" for loader in loaders]
    shapes = [(len(loader.images), *one.shape[1:]) for loader in loaders]
    _make_room(folder, dict(zip(files, map(_bytes, shapes), strict=True)), limit_gb)
    maps = []
    for loader, file, shape in zip(loaders, files, shapes, strict=True):
        if not file.exists():
            _write(file, shape, student, loader, report)
        maps.append(_open(file, shape))
    return maps


def _loader(records: Sequence[Sample], student: Grounder) -> GroundingLoader:
    """One row an image: the view does not depend on the phrase."""
    first = {record.image: record for record in reversed(records)}
    rows = [first[image] for image in dict.fromkeys(record.image for record in records)]
    return GroundingLoader(rows, student.tokenize, image_size=student.image_size, batch_size=32)


def _key(student: Grounder, images: Sequence[Path]) -> str:
    """Return a digest of all that the features of some images depend on."""
    visual = student.visual_encoder
    settings = {name: value for name, value in student.settings["visual_encoder"].items() if name not in _NOT_OURS}
    pixels = [visual.mean.flatten().tolist(), visual.std.flatten().tolist()]
    key = hashlib.sha256(json.dumps([_FORMAT, student.image_size, settings, visual.strides, pixels]).encode())
    for path in images:
        key.update(hashlib.sha256(path.read_bytes()).digest())
    return fingerprint(visual.backbone.state_dict(), key)[:32]


def _bytes(shape: Sequence[int]) -> int:
    return 2 * torch.Size(shape).numel()


def _make_room(folder: Path, wanted: dict[Path, int], limit_gb: float) -> None:
    """Remove what was used longest ago, so that `folder` holds no more than the limit with the wanted files in it.

    Raises:
        InputError: the wanted files alone are more.
    """
    limit, size = limit_gb * 1e9, sum(wanted.values())
    if size > limit:
        raise InputError(
            f"Storing the features of this training's images takes {size / 1e9:.1f} GB: raise "
            f"train.feature_cache_gb={limit_gb:g} or set train.cache_features=false."
        )
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for file in wanted:
            if file.exists():
                os.utime(file)
        for file in folder.glob(".maps-*"):
            if time.time() - file.stat().st_mtime > _ABANDONED:
                file.unlink(missing_ok=True)  # its writer was killed
        others = [(file.stat(), file) for file in folder.glob("maps-*") if file not in wanted]
        for state, file in sorted(others, key=lambda other: other[0].st_mtime, reverse=True):
            size += state.st_size
            if size > limit:
                file.unlink(missing_ok=True)


@torch.no_grad()
def _write(
    file: Path, shape: tuple[int, ...], student: Grounder, loader: GroundingLoader, report: Callable[..., None]
) -> None:
    """Compute an array into a temporary file, whose room on the disk is taken first."""
    with atomic_write(file) as temporary:
        values: _Values = np.lib.format.open_memmap(temporary, "w+", np.uint16, shape)
        with temporary.open("r+b") as out:
            if hasattr(os, "posix_fallocate"):  # a mapped page that finds no room kills the process
                os.posix_fallocate(out.fileno(), 0, os.fstat(out.fileno()).st_size)
        done = 0
        for batch in loader.batches(0):
            image, image_mask = (
                batch.images.to(student.visual_encoder.mean.device),
                batch.image_mask.to(student.visual_encoder.mean.device),
            )
            maps = student.visual_encoder.backbone_features(image, image_mask).to(torch.bfloat16).cpu().contiguous()
            values[done : done + len(maps)] = maps.view(torch.uint16).numpy()
            done += len(maps)
            report({"event": "store", "name": "storing maps", "done": done, "total": len(values)})
        del values


def _open(file: Path, shape: tuple[int, ...]) -> Tensor:
    try:
        values: _Values = np.load(file, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is damaged ({error}): delete it.") from error
    if values.shape != shape or values.dtype != np.uint16:
        raise InputError(f"{file} holds {values.dtype} {values.shape} in place of {shape}: delete it.")
    return torch.from_numpy(values).view(torch.bfloat16)
