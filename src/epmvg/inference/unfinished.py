"""Finished rows of unfinished work: a file to which rows are appended, and in which later starts find them by key."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from epmvg.core.files import disk_errors
from epmvg.core.types import InputError
from epmvg.data.readers.jsonl import json_line

if os.name == "posix":
    import fcntl

Row = dict[str, Any]

FORMAT_VERSION = 1
HEADER = b'{"epmvg": "unfinished predictions", "version": %d}\n' % FORMAT_VERSION


class Finished(NamedTuple):
    """A row that is done."""

    row: Row
    size: tuple[int, int]  # of the upright image, pixels; (0, 0) where it could not be opened


class Unfinished:
    """The file `<out>.part`, open for one process; its rows are found by key.

    A key stands for all that a row's content depends on, so a row that is found is right. 24 bytes of memory are used
    per row of earlier starts.

    Args:
        out: the file that will hold the result; this one lies beside it.

    Raises:
        InputError: the file cannot be written, holds anything else, or another process writes it.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.file = out, part_of(out)
        if self.file.exists() and not self.file.is_file():
            raise InputError(f"{self.file} is in the way of unfinished work: move it, or choose another --out.")
        with disk_errors(out):
            self._open = self.file.open("a+b")
        try:
            self._lock()
            self._keys, self._places = self._index()
        except BaseException:
            self._open.close()
            raise
        self.earlier = self.rows = len(self._keys)

    def __enter__(self) -> Unfinished:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        """Delete the file if the work is finished, or has not begun."""
        self._open.close()
        if kind is None or self.rows == 0:
            self.file.unlink(missing_ok=True)

    def find(self, key: int) -> int | None:
        """Return where the row of a key lies, None where no earlier start has finished it."""
        at = int(np.searchsorted(self._keys, np.uint64(key)))
        return int(self._places[at]) if at < len(self._keys) and self._keys[at] == key else None

    def append(self, finished: list[tuple[int, Finished]]) -> list[int]:
        """Append rows with their keys; return where they lie.

        Raises:
            InputError: the disk is full or refuses otherwise.
        """
        lines = [json_line({"key": key, "size": done.size, "row": done.row}) for key, done in finished]
        with disk_errors(self.out):
            end = self._open.seek(0, os.SEEK_END)
            self._open.write(b"".join(lines))
            self._open.flush()
        self.rows += len(lines)
        return [end + sum(map(len, lines[:number])) for number in range(len(lines))]

    def read(self, places: array[int]) -> Iterator[Finished]:
        """Read rows in the order of `places`."""
        for place in places:
            self._open.seek(place)
            line = json.loads(self._open.readline())
            yield Finished(line["row"], tuple(line["size"]))

    def describe(self) -> str:
        """Say what is kept when work stops."""
        if self.rows == 0:
            return "Stopped before the first row was finished."
        return f"Stopped: {self.rows:,} finished rows are kept in {self.file}; run the same command again to go on."

    def _lock(self) -> None:
        if os.name != "posix":
            return
        try:
            fcntl.flock(self._open, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"Another process writes {self.out}: wait for it, or choose another --out.") from error
        except OSError:  # a file system without locks
            return

    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the keys [R] of the rows, ascending, and where each lies; cut off a line that is torn."""
        self._open.seek(0)
        start = self._open.read(len(HEADER))
        if start != HEADER:
            if not HEADER.startswith(start):
                raise InputError(
                    f"{self.file} is no unfinished work of this version: move it away, or choose another --out."
                )
            self._open.truncate(0)
            with disk_errors(self.out):
                self._open.write(HEADER)
                self._open.flush()
        keys, places, place = array("Q"), array("q"), len(HEADER)
        self._open.seek(place)
        for line in self._open:
            if not line.endswith(b"\n"):
                self._open.truncate(place)
                break
            key = _key_of(line)
            if key is not None:
                keys.append(key)
                places.append(place)
            place += len(line)
        order = np.argsort(np.asarray(keys), kind="stable")
        return np.asarray(keys)[order], np.asarray(places)[order]


def part_of(out: Path) -> Path:
    """Return the file that holds the finished rows until `out` is written."""
    return out.with_name(out.name + ".part")


def _key_of(line: bytes) -> int | None:
    """Return the key of a line, None for one that a crash has spoilt."""
    try:
        row = json.loads(line)
        width, height = row["size"]
        return int(row["key"]) if isinstance(row["row"], dict) and width >= 0 <= height else None
    except (ValueError, KeyError, TypeError):
        return None
