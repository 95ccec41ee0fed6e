"""Annotation files under a root: read whole and checked on the way in; no path ever leaves its root."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar

from epmvg.core.types import InputError

T = TypeVar("T")

_NOUNS: dict[type, str] = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}


_POINTER = b"version https://git-lfs.github.com/spec/"


def read_bytes(file: Path) -> bytes:
    """Read a file whole.

    Raises:
        InputError: it cannot be opened, or is a Git LFS pointer.
    """
    try:
        content = file.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{file} cannot be opened ({reason}): check the path.") from error
    refuse_pointer(content, file)
    return content


def refuse_pointer(content: bytes, file: Path) -> None:
    """Raise InputError if the first bytes of a file are those of a Git LFS pointer instead of the file."""
    if content.startswith(_POINTER):
        raise InputError(f"{file} is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository.")


def exists(path: Path | str) -> bool:
    """Say whether a path exists; a name that the system cannot hold (too long, with NUL) does not."""
    return os.path.exists(path)  # noqa: PTH110  unlike Path.exists, it takes any text


def is_folder(path: Path | str) -> bool:
    """Say whether a path is a folder; a name that the system cannot hold (too long, with NUL) is none."""
    return os.path.isdir(path)  # noqa: PTH112  unlike Path.is_dir, it takes any text


def is_file(path: Path | str) -> bool:
    """Say whether a path is a file; a name that the system cannot hold (too long, with NUL) is none."""
    return os.path.isfile(path)  # noqa: PTH113  unlike Path.is_file, it takes any text


def read_lines(file: Path) -> list[str]:
    """Read the lines of a text file that hold anything, stripped.

    Raises:
        InputError: it cannot be opened or is not UTF-8.
    """
    try:
        text = read_bytes(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text ({error.reason}): fetch the file anew.") from error
    return [line.strip() for line in text.split("\n") if line.strip()]


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: it cannot be opened or is not JSON.
    """
    return parse_json(read_bytes(file), str(file), "mend the file or fetch it anew")


def parse_json(text: bytes, where: str, cure: str) -> Any:
    """Parse JSON of anyone's making: too deep, too long or torn is one sentence, as anything else.

    Raises:
        InputError: it is not JSON, or not UTF-8.
    """
    try:
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 text ({error.reason}): save the file as UTF-8.") from error
    except (RecursionError, ValueError) as error:
        raise InputError(f"{where} is not JSON ({json_fault(error)}): {cure}.") from error


def json_fault(error: Exception) -> str:
    """Return what `json.loads` found wrong, and where in the text."""
    if isinstance(error, RecursionError):
        return "nested too deep"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')} at character {error.pos + 1}"
    return str(error).split(":", maxsplit=1)[0]


def need(row: object, key: str, kind: type[T], where: str) -> T:
    """Return a row's value under a key that must be there and of a kind.

    Raises:
        InputError: it is not.
    """
    value = row.get(key) if isinstance(row, dict) else None
    if not isinstance(value, kind):
        raise InputError(f'{where}: "{key}" is {shown(value)}, it must be {_NOUNS[kind]}; mend the file.')
    return value


def inside(root: Path, name: object, where: str) -> Path:
    """Join a path that a file names to the root it must stay in.

    Raises:
        InputError: it is no path, or leads out of the root.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name or not is_encodable(name):
        raise InputError(f"{where}: {shown(name)} is not the path of a file; mend the row.")
    path = PurePath(name)
    if not path.anchor and ".." not in path.parts:
        return root / path
    top = os.path.abspath(root)  # noqa: PTH100  symbolic links stay as the user laid them
    full = os.path.normpath(os.path.join(top, name))  # noqa: PTH118
    if not full.startswith(top.rstrip(os.sep) + os.sep):
        raise InputError(f"{where}: {shown(name)} leads out of {root}; give the folder that holds it with --root.")
    return root / os.path.relpath(full, top)


def relative_to(image: Path, base: Path) -> str | None:
    """Return the path of an image as a file in `base` names it, or None where it lies elsewhere."""
    relative = PurePath(os.path.relpath(image, base))
    return None if relative.anchor or ".." in relative.parts else relative.as_posix()


def first_there(tops: Sequence[Path], names: Sequence[str]) -> Path | None:
    """Return the first of top/name that exists, tops before names."""
    return next((top / name for top in tops for name in names if exists(top / name)), None)


def four_numbers(value: object) -> tuple[float, float, float, float] | None:
    """Return a list of four numbers, also as text, as floats, or None where it is anything else."""
    if not isinstance(value, list | tuple) or len(value) != 4 or any(isinstance(number, bool) for number in value):
        return None
    try:
        a, b, c, d = (float(number) for number in value)
    except (TypeError, ValueError, OverflowError):
        return None
    return a, b, c, d


def size_of(width: object, height: object, where: str) -> tuple[int, int] | None:
    """Return (width, height) in pixels, also of numbers in text, or None where either is not stated.

    Raises:
        InputError: one of them is no number of pixels.
    """
    if width is None or height is None:
        return None
    sides = []
    for value in (width, height):
        try:
            side = float(value) if isinstance(value, int | float | str) else -1.0
        except (ValueError, OverflowError):
            side = -1.0
        if not 0 <= side < 1e9:
            raise InputError(f"{where}: width and height are {shown(width)}, {shown(height)}, not pixels; mend them.")
        sides.append(int(side))
    return sides[0], sides[1]


def is_encodable(text: str) -> bool:
    """Say whether a text can be written as UTF-8; half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: object) -> str:
    """Return a short form of any value for a message."""
    try:
        return reprlib.repr(value)
    except ValueError:  # an integer of more than 4,300 digits
        return f"a huge {type(value).__name__}"
