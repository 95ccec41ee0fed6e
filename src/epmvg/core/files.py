"""Atomic writing of files, and disk errors as one sentence."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from epmvg.core.types import InputError

_MAX_NAME = 255  # bytes, of the usual file systems

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """Yield a temporary file beside `file` that replaces it when the block ends, or is deleted when the block raises.

    A symbolic link stays one, and the file it points to is replaced. The new file has the mode of the one it replaces,
    or that of the umask. Devices and pipes cannot be replaced and are yielded themselves.

    Raises:
        InputError: a disk error; the previous content of `file` is kept.
    """
    with disk_errors(file):
        target = file.resolve() if file.is_symlink() else file
        if target.is_dir():
            raise InputError(f"{file} is a folder. Give the name of a file.")
        if target.exists() and not target.is_file():
            yield target
            return
        temporary = temporary_path(target, ".part")
        try:
            temporary.touch(0o666, exist_ok=False)
            mode = stat.S_IMODE((target if target.exists() else temporary).stat().st_mode)
            yield temporary
            temporary.chmod(mode)  # some libraries create files for the owner only
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def temporary_path(file: Path, suffix: str = "") -> Path:
    """Return a hidden, unique name beside `file` that is no longer than file systems allow."""
    unique = f".{uuid4().hex}{suffix}"
    stem = os.fsencode(file.name)[: _MAX_NAME - len(unique) - 1].decode(errors="ignore")
    return file.with_name(f".{stem}{unique}")


def expand_home(path: Path | str) -> Path:
    """Return a path with ~ and ~USER replaced where there is such a user: a file may be called ~x.jpg."""
    try:
        return Path(path).expanduser()
    except (RuntimeError, ValueError):
        return Path(path)


def check_not_input(out: Path | str, *inputs: Path | str | None) -> None:
    """Reject an output that is one of the inputs under any spelling or link; inputs of None are ignored."""
    for path in inputs:
        is_same = False
        with suppress(OSError, ValueError):  # no such file, or not a valid name of one
            is_same = path is not None and (Path(out).resolve() == Path(path).resolve() or Path(out).samefile(path))
        if is_same:
            raise InputError(f"{out} would overwrite the input {path}. Choose another name for the output.")


@contextmanager
def disk_errors(file: Path) -> Iterator[None]:
    """Raise the disk errors of a block as an InputError that names `file` and what to do."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        number = _errno(error)
        if number is None:
            raise
        advice = "Free some space" if number in _FULL else "Choose a folder that can be written"
        raise InputError(f"{file} could not be written ({os.strerror(number)}). {advice}, then try again.") from error


def _errno(error: BaseException | None) -> int | None:
    """Return the system's error number of an error, of its cause, or of the write that safetensors or torch report."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        quoted = re.search(r"\(os error (\d+)\)", str(error))  # safetensors
        if quoted:
            return int(quoted[1])
        error = error.__cause__ or (error.__context__ if "inline_container" in str(error) else None)
    return None


def write_text(file: Path, text: str) -> None:
    """Write a text file atomically; errors as `atomic_write`."""
    with atomic_write(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(file: Path, value: Any) -> None:
    """Write JSON atomically; numbers that are not finite are rejected."""
    write_text(file, _finite_json(file, value, indent=1) + "\n")


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSONL atomically, as `write_json`; scores are rounded to six digits here and nowhere before."""
    with atomic_write(file) as temporary, temporary.open("w", encoding="utf-8") as out:
        for row in rows:
            score = row.get("score")
            out.write(_finite_json(file, {**row, "score": round(score, 6)} if isinstance(score, float) else row) + "\n")


def to_json(value: Any, **options: Any) -> str:
    """Return JSON with letters as they are, or escaped where UTF-8 cannot hold one, as in some file names."""
    text = json.dumps(value, ensure_ascii=False, **options)
    return text if is_encodable(text) else json.dumps(value, **options)


def is_encodable(text: str) -> bool:
    """Return whether a text can be written as UTF-8; half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _finite_json(file: Path, value: Any, indent: int | None = None) -> str:
    try:
        return to_json(value, indent=indent, allow_nan=False)
    except ValueError as error:
        raise InputError(f"{file} is not written: a result is NaN or Inf. Check the model's weights.") from error
