"""Decoded pictures, kept on disk at the size that training views need: later epochs neither decode nor reduce.

Several processes may share the folder: files appear whole or not at all, and nobody relies on one staying there.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import struct
from pathlib import Path

from PIL import Image

from epmvg.core.files import temporary_path
from epmvg.core.images import ImageFile
from epmvg.core.types import InputError

_SHELVES = 64  # each is bounded by itself, so that only its own files are counted when one is added
_HEAD = struct.Struct("<4I")  # width and height of the photo, width and height of the pixels that follow, RGB


class ImageCache:
    """Photos by path, decoded once.

    Args:
        folder: where the files lie.
        limit_gb: they never take more together; the oldest make room.
        longest: photos are kept with a longer side of at most so many pixels.

    Raises:
        InputError: the limit leaves no room for a photo of that size.
    """

    def __init__(self, folder: Path, limit_gb: float, longest: int) -> None:
        self.folder, self.longest = folder, longest
        self.shelf_bytes = int(limit_gb * 1e9 / _SHELVES)
        least = (_HEAD.size + 3 * longest**2) * _SHELVES / 1e9
        if limit_gb < least:
            enough = math.ceil(100 * least) / 100
            raise InputError(
                f"data.cache_gb={limit_gb:g} cannot keep pictures of {longest} px: give {enough:g} or more, or 0."
            )

    def open(self, path: Path) -> tuple[Image.Image, tuple[int, int]]:
        """Return a photo as RGB, upright, perhaps reduced, and the (width, height) it had before.

        Raises:
            InputError: as `ImageFile`.
        """
        try:
            file = self._file(path)
        except OSError as error:
            raise InputError(f"{path} does not exist: check the path.") from error
        kept = _read(file)
        if kept is not None:
            return kept
        with ImageFile(path) as photo:
            size = photo.size
            share = min(1.0, self.longest / max(size))
            reduced = (max(1, round(size[0] * share)), max(1, round(size[1] * share)))
            picture = photo.decode(reduced)
        if picture.size != reduced:
            picture = picture.resize(reduced, Image.Resampling.LANCZOS)
        with contextlib.suppress(OSError):  # a full disk costs time, not the training
            self._keep(file, _HEAD.pack(*size, *reduced) + picture.tobytes())
        return picture, size

    def _file(self, path: Path) -> Path:
        state = path.stat()
        asked = f"{path.absolute()}\n{state.st_mtime_ns}\n{state.st_size}\n{self.longest}"
        key = hashlib.sha256(asked.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        return self.folder / f"{int(key, 16) % _SHELVES:02d}" / f"{key}.rgb"

    def _keep(self, file: Path, content: bytes) -> None:
        """Make room on the shelf, then write under a temporary name and rename."""
        file.parent.mkdir(parents=True, exist_ok=True)
        present = []
        for entry in os.scandir(file.parent):
            with contextlib.suppress(FileNotFoundError):  # another process made room
                state = entry.stat()
                present.append((state.st_mtime_ns, state.st_size, entry.path))
        total = sum(size for _, size, _ in present) + len(content)
        for _, size, name in sorted(present):
            if total <= self.shelf_bytes:
                break
            Path(name).unlink(missing_ok=True)
            total -= size
        temporary = temporary_path(file)
        try:
            temporary.write_bytes(content)
            temporary.replace(file)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def _read(file: Path) -> tuple[Image.Image, tuple[int, int]] | None:
    """Read a kept picture and its photo's size; None where there is none, or not a whole one."""
    try:
        content = memoryview(file.read_bytes())
    except OSError:
        return None
    if len(content) < _HEAD.size:
        return None
    width, height, kept_width, kept_height = _HEAD.unpack(content[: _HEAD.size])
    if len(content) != _HEAD.size + 3 * kept_width * kept_height:
        return None
    return Image.frombytes("RGB", (kept_width, kept_height), content[_HEAD.size :]), (width, height)
