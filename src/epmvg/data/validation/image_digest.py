"""Opens each photo once: can it be decoded, how large is it upright, and what does it look like in 17 x 16 greys?

The greys give a difference hash of 256 bits (is each cell brighter than the one to its right? after N. Krawetz's
dHash); where two hashes nearly agree, the greys are correlated. `imagehash` would bring SciPy and PyWavelets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from epmvg.core import images as photos
from epmvg.core.types import InputError

GRID = (17, 16)
"""Columns and rows of the greys: 16 x 16 differences."""

SAME_BITS = 40
"""Hashes of one photo, resized or saved anew, differ in fewer of the 256 bits.

Of 300 photos of flickr-mini halved at JPEG quality 50, 99 % differ in at most 32; of the 19 million pairs of different
photos there, none in fewer than 43.
"""

ALIKE = 0.93
"""Correlation of greys above which two pictures with nearly the same hash look the same.

Photos saved anew stay above 0.95. Of flickr-mini's photos no two differ in fewer than 60 bits and exceed 0.92, and of
the drawn scenes, many of them smooth ramps of colour, none within 40 bits exceeds 0.80.
"""


@dataclass(slots=True)
class Photo:
    """What opening a file showed."""

    fault: str = ""  # a kind of finding
    why: str = ""
    size: tuple[int, int] | None = None  # width, height upright
    turned: bool = False  # upright, width and height change places
    greys: bytes = b""
    animated: bool = False


def look(file: Path) -> Photo:
    """Decode a photo, JPEG at an eighth of its size, and say what is wrong with it; never raises."""
    try:
        with photos.ImageFile(file) as opened:
            animated = opened.animated
            small = opened.decode((4 * GRID[0], 4 * GRID[1]))  # reads the whole file, so a torn one shows
            return Photo("", "", opened.size, opened.turned, _small_greys(small), animated)
    except photos.ImageError as error:
        return Photo(f"image-{error.fault}", error.detail)
    except InputError as error:
        return Photo("image-foreign", str(error))


def _small_greys(image: Image.Image) -> bytes:
    return image.convert("L").resize(GRID, Image.Resampling.BOX).tobytes()


def find_twins(ours: Sequence[bytes], theirs: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Yield (number in `ours`, number of its nearest in `theirs`) of pictures that look the same."""
    if not ours or not theirs:
        return
    left, right = _greys(ours), _greys(theirs)
    signs = _signs(right)
    step = max(1, 2**24 // len(theirs))
    for start in range(0, len(ours), step):
        block = left[start : start + step]
        agree = _signs(block) @ signs.T  # agreeing less differing bits
        best = agree.argmax(axis=1)
        near = agree[np.arange(len(block)), best] > 256 - 2 * SAME_BITS
        same = (_unit(block[near]) * _unit(right[best[near]])).sum(axis=1) > ALIKE
        for i in np.flatnonzero(near)[same]:
            yield start + int(i), int(best[i])


def groups_of(pictures: Sequence[bytes]) -> list[int]:
    """Return a number for each picture that it shares with those that look the same, also by way of others."""
    if not pictures:
        return []
    group = list(range(len(pictures)))

    def first(one: int) -> int:
        while group[one] != one:
            one = group[one]
        return one

    greys = _greys(pictures)
    signs, units = _signs(greys), _unit(greys)
    step = max(1, 2**24 // max(1, len(pictures)))
    for start in range(0, len(pictures), step):
        agree = signs[start : start + step] @ signs.T > 256 - 2 * SAME_BITS
        for i, j in zip(*np.nonzero(np.triu(agree, start + 1)), strict=True):
            if units[start + i] @ units[j] > ALIKE:
                group[first(int(j))] = first(start + int(i))
    return [first(one) for one in range(len(pictures))]


def _greys(pictures: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(pictures), np.uint8).reshape(len(pictures), GRID[1], GRID[0])


def _signs(greys: NDArray[np.uint8]) -> NDArray[np.float32]:
    brighter = greys[:, :, :-1] > greys[:, :, 1:]
    return (2 * brighter.astype(np.float32) - 1).reshape(len(greys), -1)


def _unit(greys: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return greys less their mean at length 1; a flat picture, like no other, at length 0."""
    values: NDArray[np.float32] = greys.reshape(len(greys), GRID[0] * GRID[1]).astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1)
    return values
