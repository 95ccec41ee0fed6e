"""Annotation files: reading them whole or line by line, and the paths that they name below a root.

A file that cannot be read, is a Git LFS pointer or in another encoding than UTF-8 raises an InputError that names it.
"""

from __future__ import annotations

import codecs
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from io import BufferedReader
from pathlib import Path, PurePath
from typing import Any

from filelock import FileLock

from epmvg.core.files import disk_errors, is_encodable
from epmvg.core.types import InputError
from epmvg.data.readers.fields import short_repr

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"

# Unlike the methods of Path, these return False for names that the system cannot hold (too long, with NUL).
exists, is_folder, is_file = os.path.exists, os.path.isdir, os.path.isfile


def cache_folder() -> Path:
    """Return the folder of drawn scenes, unpacked tars and the like: $EPMVG_CACHE, or epmvg in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("EPMVG_CACHE") or Path(home) / "epmvg")


def build_folder(folder: Path, build: Callable[[Path], object]) -> None:
    """Build a folder unless it exists, whole or not at all; other processes that want the same one wait.

    Args:
        build: writes the content into the temporary folder that it is given.

    Raises:
        InputError: the disk is full or read-only.
    """
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if folder.exists() and any(folder.iterdir()):
                return
            temporary = folder.with_name(f".{folder.name}.part")
            shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
            try:
                temporary.mkdir()
                build(temporary)
                if folder.exists():
                    folder.rmdir()
                temporary.rename(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)


def open_file(file: Path) -> BufferedReader:
    """Open a file to read its bytes."""
    try:
        stream = file.open("rb")
        start = stream.peek(len(_LFS_POINTER))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{file} cannot be opened ({reason}). Check the path.") from error
    if start.startswith(_LFS_POINTER):
        stream.close()
        raise InputError(f"{file} is a Git LFS pointer, not the file itself. Run `git lfs pull` in its repository.")
    return stream


def read_bytes(file: Path) -> bytes:
    """Read a file whole."""
    with open_file(file) as stream:
        return stream.read()


def read_text_lines(file: Path) -> list[str]:
    """Read the lines of a text file that are not blank, stripped."""
    try:
        text = read_bytes(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text ({error.reason}). Save the file as UTF-8.") from error
    return [line.strip() for line in text.split("\n") if line.strip()]


def byte_lines(file: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (file and line number, content) of each line of a file that is not blank."""
    with open_file(file) as lines:
        for number, line in enumerate(lines, 1):
            if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise InputError(f"{file} is UTF-16 text. Save the file as UTF-8.")
            if line.strip():
                yield f"{file} line {number}", line.strip()


def read_json(file: Path) -> Any:
    """Read a JSON file."""
    return parse_json(read_bytes(file), str(file))


def parse_json(text: bytes, location: str) -> Any:
    """Parse JSON from an unknown source."""
    try:
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise InputError(f"{location} is not UTF-8 text ({error.reason}). Save the file as UTF-8.") from error
    except (RecursionError, ValueError) as error:
        raise InputError(f"{location} is not JSON ({error}). Fix or delete it.") from error


def first_existing(folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    """Return the first of folder/name that exists, folders before names."""
    return next((folder / name for folder in folders for name in names if exists(folder / name)), None)


def path_inside(root: Path, name: object, location: str, fix: str = "Give its folder with --root") -> Path:
    """Join a path that a file names to the root it must stay in; `fix` is what to do where it does not.

    Raises:
        InputError: it is no path, or is outside of the root.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name or not is_encodable(name):
        raise InputError(f"{location}: {short_repr(name)} is not the path of a file. Fix the annotation.")
    path = PurePath(name)
    if not path.anchor and ".." not in path.parts:
        return root / path
    top = os.path.abspath(root)  # noqa: PTH100  symbolic links stay as the user made them
    full = os.path.normpath(os.path.join(top, name))  # noqa: PTH118
    if not full.startswith(top.rstrip(os.sep) + os.sep):
        raise InputError(f"{location}: {short_repr(name)} is outside of {root}. {fix}.")
    return root / os.path.relpath(full, top)


def relative_to(image: Path, base: Path) -> str | None:
    """Return the path of an image as a file in `base` names it, or None where it lies elsewhere."""
    relative = PurePath(os.path.relpath(image, base))
    return None if relative.anchor or ".." in relative.parts else relative.as_posix()
