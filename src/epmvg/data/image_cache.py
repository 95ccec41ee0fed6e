"""Disk cache of decoded training images: later epochs neither decode nor reduce them."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import numpy as np
from PIL import Image

from epmvg.core.cache import DiskCache, content_key
from epmvg.core.images import ImageFile
from epmvg.core.types import InputError


class ImageCache:
    """Reduced RGB pixels of images in one file, which several processes may share.

    Args:
        file: of the cache.
        limit_gb: size limit of the file; the oldest images are removed for new ones.
        longest_side: of the cached images in pixels.

    Raises:
        InputError: an image of that size would exceed the limit, or the file cannot be used.
    """

    def __init__(self, file: Path, limit_gb: float, longest_side: int) -> None:
        least = 4 * longest_side**2 / 1e9
        if limit_gb < least:
            raise InputError(
                f"data.cache_gb={limit_gb:g} is too small for images of {longest_side} px. "
                f"Set {math.ceil(1000 * least) / 1000:g} or more, or 0 for no cache."
            )
        self.longest_side = longest_side
        self.arrays = DiskCache(file, int(limit_gb * 1e9))

    def open(self, path: Path) -> CachedImage:
        """Open an image whose `decode` reads from the cache, or decodes the file and adds it."""
        return CachedImage(path, self.arrays, self.longest_side)


class CachedImage(ImageFile):
    """An image file that is decoded once, at the size of its cache."""

    def __init__(self, path: Path, arrays: DiskCache, longest_side: int) -> None:
        super().__init__(path)
        self.arrays, self.longest_side = arrays, longest_side
        state = path.stat()
        self._key = content_key(str(path.absolute()), state.st_mtime_ns, state.st_size, longest_side)

    def decode(self, at_least: tuple[int, int] | None = None) -> Image.Image:
        """Return the image as RGB, upright, with the longer side of its cache or its own if that is shorter."""
        with contextlib.suppress(InputError):  # without the cache decoding takes longer
            pixels = self.arrays.get([self._key])[0]
            if pixels is not None:
                return Image.fromarray(pixels)
        scale = min(1.0, self.longest_side / max(self.size))
        size = (max(1, round(self.size[0] * scale)), max(1, round(self.size[1] * scale)))
        image = super().decode(size)
        if image.size != size:
            image = image.resize(size, Image.Resampling.LANCZOS)
        with contextlib.suppress(InputError):
            self.arrays.put([self._key], [np.asarray(image)])
        return image
