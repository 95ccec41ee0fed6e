"""Files that appear whole or not at all: written under a temporary name, renamed, and every fault of the disk named."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from os import strerror
from pathlib import Path
from uuid import uuid4

from epmvg.types import InputError

_CURES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit on a file's size (ulimit -f), or choose another disk",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that can be written",
    errno.EPERM: "choose a folder that can be written",
}


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield a temporary name beside `file`, which takes its place once all is written, or leaves no trace.

    Raises:
        InputError: the disk is full, read-only or refuses otherwise; what stood in `file` before is kept.
    """
    temporary = file.with_name(f".{file.name}.part")
    try:
        with naming(file):
            yield temporary
            temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def aside(file: Path) -> Path:
    """Return a temporary name beside `file` that nobody else takes, on any machine that shares the disk."""
    return file.with_name(f".{file.name}.{uuid4().hex}")


def write_text(file: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        InputError: as `replacing`.
    """
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Name the file that cannot be written, and the cure.

    Raises:
        InputError: the disk is full, read-only or refuses otherwise.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        number = _number_of(error)
        if number is None:
            raise
        cure = _CURES.get(number, "check the folder")
        raise InputError(f"{file} could not be written ({strerror(number)}): {cure}, then try again.") from error


def _number_of(error: BaseException | None) -> int | None:
    """Return the system's error number; torch raises one of its own after the disk's, safetensors quotes it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        quoted = re.search(r"\(os error (\d+)\)", str(error))
        if quoted:
            return int(quoted[1])
        error = error.__context__
    return None
