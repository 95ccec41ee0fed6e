"""A digest of samples: which images, phrases and boxes, in which order, wherever the images lie."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from epmvg.core.types import Sample

SAMPLES = "samples.json"
"""In a run's folder: the samples of its training and validation split."""


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of a split: how many, of how many images, and a digest of them in their order."""

    phrases: int
    images: int
    sha256: str

    @classmethod
    def of(cls, records: Sequence[Sample]) -> Samples:
        """Digest samples. An image is known by its path below the folder that holds all of them."""
        paths = {record.image: record.image.absolute() for record in records}
        base = os.path.commonpath([path.parent for path in paths.values()]) if paths else ""
        names = {image: path.relative_to(base).as_posix() for image, path in paths.items()}
        digest = hashlib.sha256()
        for record in records:
            row = (names[record.image], record.phrase, tuple(map(float, record.box)))
            digest.update(repr(row).encode("utf-8", "surrogateescape") + b"\n")
        return cls(len(records), len(paths), digest.hexdigest())

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.phrases:,} phrases of {self.images:,} images"
