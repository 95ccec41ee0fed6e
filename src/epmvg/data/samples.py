"""A digest of samples: which images, phrases, boxes and weights, in which order, wherever the images lie."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from epmvg.core.types import InputError, Sample

SAMPLES = "samples.json"
"""In a run's folder: the digests of its training and validation split."""


@dataclass(frozen=True, slots=True)
class SampleDigest:
    """The samples of a split: how many, of how many images, and a digest of them in their order."""

    phrases: int
    images: int
    sha256: str

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> SampleDigest:
        """Digest samples. An image is identified by its path below the folder that holds all of them."""
        paths = {sample.image: sample.image.absolute() for sample in samples}
        base = os.path.commonpath([path.parent for path in paths.values()]) if paths else ""
        names = {image: path.relative_to(base).as_posix() for image, path in paths.items()}
        digest = hashlib.sha256()
        for sample in samples:
            line: tuple[Any, ...] = (names[sample.image], sample.phrase, tuple(map(float, sample.box)))
            line += () if sample.weight == 1 else (sample.weight,)
            digest.update(repr(line).encode("utf-8", "surrogateescape") + b"\n")
        return cls(len(samples), len(paths), digest.hexdigest())

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.phrases:,} phrases of {self.images:,} images"


def read_digests(file: Path) -> tuple[dict[str, SampleDigest], str | None]:
    """Read the digests of the splits "train" and "val" of a run, and the fingerprint of its teacher.

    Raises:
        InputError: the file is damaged.
    """
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        return {name: SampleDigest(**saved[name]) for name in ("train", "val")}, saved["teacher"]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{file} is damaged. Delete it to continue without comparing the samples.") from error
