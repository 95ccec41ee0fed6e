"""Disk cache of decoded training images: later epochs neither decode nor reduce them."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from pathlib import Path

from PIL import Image

from epmvg.core.files import replacing
from epmvg.core.images import Photo
from epmvg.core.types import InputError

_FOLDERS = 64  # each has its own part of the limit, so that only its files are counted when one is added


class ImageCache:
    """Reduced RGB pixels of images in files of a folder, which several processes may share.

    Args:
        folder: of the files.
        limit_gb: size limit of all files; the oldest are deleted for new ones.
        longest_side: of the cached images in pixels.

    Raises:
        InputError: an image of that size would exceed the limit.
    """

    def __init__(self, folder: Path, limit_gb: float, longest_side: int) -> None:
        self.folder, self.longest_side = folder, longest_side
        self.folder_bytes = int(limit_gb * 1e9 / _FOLDERS)
        least = 3 * longest_side**2 * _FOLDERS / 1e9
        if limit_gb < least:
            raise InputError(
                f"data.cache_gb={limit_gb:g} is too small for images of {longest_side} px: "
                f"set {math.ceil(100 * least) / 100:g} or more, or 0 for no cache."
            )

    def open(self, path: Path) -> CachedPhoto:
        """Open an image whose `decode` reads from the cache, or decodes the file and adds it."""
        return CachedPhoto(self, path)


class CachedPhoto(Photo):
    """An image that is decoded once, at the size of its cache."""

    def __init__(self, cache: ImageCache, path: Path) -> None:
        super().__init__(path)
        state = path.stat()
        key = f"{path.absolute()}\n{state.st_mtime_ns}\n{state.st_size}\n{cache.longest_side}"
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        self._file = cache.folder / f"{int(digest, 16) % _FOLDERS:02d}" / f"{digest}.rgb"
        self._cache = cache

    def decode(self, at_least: tuple[int, int] | None = None) -> Image.Image:
        """Return the image as RGB, upright, with the longer side of its cache or its own if that is shorter."""
        scale = min(1.0, self._cache.longest_side / max(self.size))
        size = (max(1, round(self.size[0] * scale)), max(1, round(self.size[1] * scale)))
        with contextlib.suppress(OSError, ValueError):  # ValueError: the file is incomplete
            return Image.frombytes("RGB", size, self._file.read_bytes())
        image = super().decode(size)
        if image.size != size:
            image = image.resize(size, Image.Resampling.LANCZOS)
        with contextlib.suppress(OSError, InputError):  # a full disk costs time, not the training
            _add(self._file, image.tobytes(), self._cache.folder_bytes)
        return image


def _add(file: Path, content: bytes, limit: int) -> None:
    """Write a file whole or not at all, after deleting the oldest files beside it down to a limit in bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    present = []
    for entry in os.scandir(file.parent):
        with contextlib.suppress(FileNotFoundError):  # another process deleted it
            present.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
    total = sum(size for _, size, _ in present) + len(content)
    for _, size, name in sorted(present):
        if total <= limit:
            break
        Path(name).unlink(missing_ok=True)
        total -= size
    with replacing(file) as temporary:
        temporary.write_bytes(content)
