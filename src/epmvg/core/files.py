"""Files that appear whole or not at all: written under a temporary name, renamed, and every fault of the disk named."""

from __future__ import annotations

import errno
import json
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import strerror
from pathlib import Path
from typing import Any
from uuid import uuid4

from epmvg.core.types import InputError

_LONGEST_NAME = 255  # bytes, of the usual file systems

_CURES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit on a file's size (ulimit -f), or choose another disk",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that can be written",
    errno.EPERM: "choose a folder that can be written",
}


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """Yield a temporary file beside `file` that takes its place once all is written, or leaves no trace.

    A symbolic link stays one, and the file it points to is replaced. The new file has the mode of the one it
    replaces, or of the umask. Devices and pipes cannot be replaced: they are yielded themselves.

    Raises:
        InputError: the disk is full, read-only or refuses otherwise; the previous content of `file` is kept.
    """
    with disk_errors(file):
        target = file.resolve() if file.is_symlink() else file
        if target.exists() and not target.is_file():
            if target.is_dir():
                raise InputError(f"{file} is a folder: give the name of a file.")
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
    """Return a hidden, unique name beside `file`, no longer than file systems take, on any machine that shares it."""
    unique = f".{uuid4().hex}{suffix}"
    stem = file.name.encode()[: _LONGEST_NAME - len(unique) - 1].decode(errors="ignore")
    return file.with_name(f".{stem}{unique}")


def check_not_input(out: Path | str, *inputs: Path | str | None) -> None:
    """Reject an output that is one of the inputs, under whatever spelling, link or case of letters.

    Args:
        out: the file or folder that is to be written.
        inputs: files or folders that are read; None is ignored.

    Raises:
        InputError: `out` is one of them.
    """
    for given in inputs:
        if given is not None and _is_same(Path(out), Path(given)):
            raise InputError(f"{out} would overwrite the input {given}: choose another name for the output.")


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.resolve() == other.resolve() or (one.exists() and other.exists() and one.samefile(other))
    except (OSError, ValueError):  # a name that no file can have
        return False


def write_text(file: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        InputError: as `atomic_write`.
    """
    with atomic_write(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def disk_errors(file: Path) -> Iterator[None]:
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
    """Return the system's error number: the error's own, its cause's, or that of the write that torch reports."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        quoted = re.search(r"\(os error (\d+)\)", str(error))  # safetensors
        if quoted:
            return int(quoted[1])
        error = error.__cause__ or (error.__context__ if "inline_container" in str(error) else None)
    return None


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write JSONL so that no reader ever sees half of it; scores are rounded here and nowhere before.

    Raises:
        InputError: as `write_json`.
    """
    with atomic_write(file) as temporary, temporary.open("w", encoding="utf-8") as out:
        for row in rows:
            score = row.get("score")
            out.write(_json(file, {**row, "score": round(score, 6)} if isinstance(score, float) else row) + "\n")


def write_json(file: Path, value: Any) -> None:
    """Write JSON so that no reader ever sees half of it.

    Raises:
        InputError: it holds nan or infinity, which JSON has no words for, or the disk refuses.
    """
    write_text(file, _json(file, value, indent=1) + "\n")


def _json(file: Path, value: Any, indent: int | None = None) -> str:
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise InputError(f"{file} is not written: a result is not a finite number, so the model is broken.") from error
