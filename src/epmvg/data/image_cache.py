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
        side: the longer one of the cached images in pixels.
        is_shorter: it is the shorter one.

    Raises:
        InputError: an image of that size would exceed the limit, or the file cannot be used.
    """

    def __init__(self, file: Path, limit_gb: float, side: int, is_shorter: bool = False) -> None:
        least = 4 * side**2 / 1e9
        if limit_gb < least:
            raise InputError(
                f"data.cache_gb={limit_gb:g} is too small for images of {side} px. "
                f"Set {math.ceil(1000 * least) / 1000:g} or more, or 0 for no cache."
            )
        self.side, self.is_shorter = side, is_shorter
        self.arrays = DiskCache(file, int(limit_gb * 1e9))

    def open(self, path: Path) -> CachedImage:
        """Open an image whose `decode` reads from the cache, or decodes the file and adds it."""
        return CachedImage(path, self)


class CachedImage(ImageFile):
    """An image file that is decoded once, at the size of its cache."""

    def __init__(self, path: Path, cache: ImageCache) -> None:
        super().__init__(path)
        self.arrays, state = cache.arrays, path.stat()
        scale = min(1.0, cache.side / (min if cache.is_shorter else max)(self.size))
        self.cached_size = max(1, round(self.size[0] * scale)), max(1, round(self.size[1] * scale))
        self._key = content_key(str(path.absolute()), state.st_mtime_ns, state.st_size, self.cached_size)

    def decode(self, at_least: tuple[int, int] | None = None) -> Image.Image:
        """Return the image as RGB, upright, with the side of its cache or its own if that is shorter."""
        with contextlib.suppress(InputError):  # without the cache decoding takes longer
            pixels = self.arrays.get([self._key])[0]
            if pixels is not None:
                return Image.fromarray(pixels)
        image = super().decode(self.cached_size)
        if image.size != self.cached_size:
            image = image.resize(self.cached_size, Image.Resampling.LANCZOS)
        with contextlib.suppress(InputError):
            self.arrays.put([self._key], [np.asarray(image)])
        return image
