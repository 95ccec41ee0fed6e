"""Answers of frozen networks to evaluation views, kept on disk: each image is opened and encoded once, ever.

Files are named by what was asked (image files, canvas) and by whom (weights), so they never need to be cleared for
being wrong; delete the folder to free the space.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from epmvg.data.loader import GroundingLoader
from epmvg.hardware import cpu_has_bf16
from epmvg.models.grounder import Grounder
from epmvg.types import InputError, Record
from epmvg.weights import fingerprint
from epmvg.writing import aside, naming

Answer = Callable[[Tensor, Tensor], Tensor]


def stored_maps(
    student: Grounder,
    records: Sequence[Record],
    folder: Path,
    limit_gb: float,
    report: Callable[[dict[str, Any]], None],
) -> Tensor:
    """Return the frozen backbone's maps of each image of `records`.

    Args:
        student: its backbone must be frozen.
        records: their images, in order of first appearance, index the array.
        folder: where the arrays lie.
        limit_gb: refuse to store more.
        report: told about progress.

    Returns:
        bfloat16 [images, C, h, w], memory-mapped.

    Raises:
        InputError: the array would be larger than `limit_gb`, or a picture cannot be opened.
    """
    images = _loader(records, student)
    key = hashlib.sha256()
    for path in images.images:
        key.update(f"{path.name}:".encode() + path.read_bytes())
    key.update(str(student.canvas).encode())
    file = folder / f"maps-{fingerprint(student.visual.backbone.state_dict(), key)[:16]}.bf16"
    return _stored(file, student.visual.maps, images, limit_gb, report)


def _loader(records: Sequence[Record], student: Grounder) -> GroundingLoader:
    """One row an image: the view does not depend on the phrase."""
    first = {record.image: record for record in reversed(records)}
    rows = [first[image] for image in dict.fromkeys(record.image for record in records)]
    return GroundingLoader(rows, student.tokenize, canvas=student.canvas, images=32, phrases=1)


@torch.no_grad()
def _stored(
    file: Path, answer: Answer, images: GroundingLoader, limit_gb: float, report: Callable[[dict[str, Any]], None]
) -> Tensor:
    """Open the array if it is there, else compute it into a temporary file and rename that."""
    count = len(images.images)
    first = next(iter(images.batches(0)))
    bf16 = torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bf16())  # half precision is what is kept
    shape = (count, *answer(first.image[:1], first.pad[:1]).shape[1:])
    size = torch.Size(shape).numel()
    if not file.exists():
        if size * 2 > limit_gb * 1e9:
            raise InputError(
                f"Storing {count} images would take {size * 2 / 1e9:.1f} GB: "
                "raise train.store_gb or set train.store=false."
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = aside(file)  # two runs may store the same at once
        _reserve(temporary, size * 2, file)
        array = torch.from_file(str(temporary), shared=True, size=size, dtype=torch.bfloat16).view(shape)
        done = 0
        for batch in images.batches(0):
            with bf16:
                array[done : done + len(batch.image)] = answer(batch.image, batch.pad).to(torch.bfloat16)
            done += len(batch.image)
            report({"event": "store", "name": "storing " + file.name.partition("-")[0], "done": done, "total": count})
        del array
        temporary.replace(file)
    return torch.from_file(str(file), shared=False, size=size, dtype=torch.bfloat16).view(shape)


def _reserve(temporary: Path, size: int, file: Path) -> None:
    """Take the array's room on the disk at once: a mapped page that finds none kills the process."""
    with naming(file), temporary.open("wb") as out:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(out.fileno(), 0, size)
        except OSError:
            temporary.unlink()
            raise
