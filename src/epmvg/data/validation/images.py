"""Read every image of a data set once, find unreadable ones, and compare images by a perceptual hash."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from epmvg.core.hardware import cpu_threads
from epmvg.core.images import ImageError, ImageFile
from epmvg.core.types import InputError, Progress
from epmvg.data.validation.issues import Issue, LocatedSample

A = TypeVar("A")
B = TypeVar("B")

SIMILAR_BITS = 48
"""Hashes of images that look the same differ in at most this many of 256 bits.

Of 1,500 photos of flickr-mini and 1,200 synthetic scenes, halved at JPEG quality 50, all differ from their originals in
at most 32 bits; of all pairs of different images, none in fewer than 80.
"""

_SIDE, _LOW = 64, 16
_COSINES = np.cos(np.pi / (2 * _SIDE) * np.outer(np.arange(_LOW), 2 * np.arange(_SIDE) + 1)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What reading an image file returned."""

    error: str = ""  # why it cannot be read
    missing: bool = False
    size: tuple[int, int] | None = None  # width and height, upright
    turned: bool = False  # EXIF swaps width and height
    hash: bytes = b""  # 256 bits


def inspect_image(path: Path) -> ImageInfo:
    """Read an image file, a JPEG at reduced size; errors are returned."""
    try:
        with ImageFile(path) as file:
            image = file.decode((_SIDE, _SIDE))  # reads the whole file, so that truncation shows
            return ImageInfo(size=file.size, turned=file.turned, hash=perceptual_hash(image))
    except InputError as error:
        missing = isinstance(error, ImageError) and error.missing
        return ImageInfo(error.detail if isinstance(error, ImageError) else str(error), missing)


def inspect_images(paths: Sequence[Path], progress: Progress | None = None) -> dict[Path, ImageInfo]:
    """Read image files in threads; Pillow decodes without holding the interpreter."""
    images = {}
    with ThreadPoolExecutor(cpu_threads()) as pool:
        for path, info in zip(paths, pool.map(inspect_image, paths), strict=True):
            images[path] = info
            if progress is not None:
                progress(len(images), len(paths))
    return images


def perceptual_hash(image: Image.Image) -> bytes:
    """Return 256 bits that stay nearly the same if an image is resized or compressed again.

    The hash is that of `imagehash.phash(image, 16)`: signs of low frequencies around their median. That package would
    also install SciPy and PyWavelets.
    """
    gray = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float32)
    frequencies = _COSINES @ gray @ _COSINES.T
    return np.packbits(frequencies > np.median(frequencies)).tobytes()


def similar_pairs(ours: Mapping[A, bytes], theirs: Mapping[B, bytes]) -> Iterator[tuple[A, B]]:
    """Yield (key of `ours`, key of `theirs`) of images that look the same; images without a hash are skipped."""
    left = [key for key, bits in ours.items() if bits]
    right = [key for key, bits in theirs.items() if bits]
    our_bits = np.frombuffer(b"".join(ours[key] for key in left), np.uint8).reshape(-1, 32)
    signs = _signs(np.frombuffer(b"".join(theirs[key] for key in right), np.uint8).reshape(-1, 32))
    step = max(1, 2**24 // max(1, len(right)))  # bounds the memory of `agreement`
    for start in range(0, len(left), step):
        agreement = _signs(our_bits[start : start + step]) @ signs.T  # equal minus different bits
        for i, j in zip(*np.nonzero(agreement >= 256 - 2 * SIMILAR_BITS), strict=True):
            yield left[start + i], right[j]


def _signs(hashes: NDArray[np.uint8]) -> NDArray[np.float32]:
    return 2 * np.unpackbits(hashes, axis=1).astype(np.float32) - 1


def image_issues(located: Sequence[LocatedSample], images: Mapping[Path, ImageInfo]) -> Iterator[Issue]:
    """Find images that are missing or unreadable, or of another size than their samples state."""
    by_image: dict[Path, list[LocatedSample]] = {}
    for where, sample in located:
        by_image.setdefault(sample.image, []).append((where, sample))
    for image, members in by_image.items():
        info, where = images[image], members[0][0]
        if info.error:
            yield Issue("image-missing" if info.missing else "image-unreadable", where, info.error, image)
        if info.size:
            correct = (None, info.size, info.size[::-1] if info.turned else None)  # turned ones: see boxes.py
            for stated in {sample.size for _, sample in members if sample.size not in correct}:
                yield Issue("image-size", where, f"stated {stated}, is {info.size}", image)
