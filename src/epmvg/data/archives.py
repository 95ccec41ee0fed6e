"""Pictures inside tar files, read where they lie: nothing is ever unpacked, so no name in an archive can lead anywhere.

The path of such a picture is the archive's with the member's name after it: `shards/0001.tar/000017.jpg`.
"""

from __future__ import annotations

import tarfile
from functools import lru_cache
from io import BytesIO
from pathlib import Path

from epmvg.types import InputError

Place = tuple[int, int]  # where a member's bytes start in its archive, and how many they are


def archive_of(path: Path) -> Path | None:
    """Return the tar file that a picture's path leads into, or None for a file of its own."""
    if ".tar" not in str(path):
        return None
    return next((parent for parent in path.parents if parent.suffix == ".tar" and parent.is_file()), None)


def is_there(path: Path) -> bool:
    """Say whether a picture exists, as a file or inside an archive."""
    archive = archive_of(path)
    return path.is_file() if archive is None else path.relative_to(archive).as_posix() in members(archive)


def source_of(path: Path) -> Path | BytesIO:
    """Return what a picture can be opened from: its path, or its bytes if it lies in an archive.

    Raises:
        InputError: the archive cannot be read or has no such member.
    """
    archive = archive_of(path)
    if archive is None:
        return path
    return BytesIO(read_member(archive, path.relative_to(archive).as_posix()))


def read_member(archive: Path, name: str) -> bytes:
    """Return the bytes of a file in an archive.

    Raises:
        InputError: the archive cannot be read or has no such member.
    """
    place = members(archive).get(name)
    if place is None:
        raise InputError(f"{archive} holds no {name}: check the path.")
    start, size = place
    with archive.open("rb") as file:
        file.seek(start)
        return file.read(size)


def members(archive: Path) -> dict[str, Place]:
    """Return where each file of a plain tar lies, in order; links and devices are left out.

    Raises:
        InputError: it is missing, compressed or torn.
    """
    try:
        state = archive.stat()
    except OSError as error:
        raise InputError(f"{archive} cannot be opened ({error.strerror}): check the path.") from error
    return _members(archive, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=32)
def _members(archive: Path, _changed: int, size: int) -> dict[str, Place]:
    found = {}
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                if member.isreg() and not member.issparse():
                    found[member.name] = (member.offset_data, member.size)
                tar.members = []  # type: ignore[attr-defined]  # else it remembers every header
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise InputError(f"{archive} is no plain tar file ({error}): write it without compression.") from error
    if any(start + length > size for start, length in found.values()):
        raise InputError(f"{archive} is cut off: fetch or write it again.")
    return found
