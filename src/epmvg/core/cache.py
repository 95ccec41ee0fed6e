"""Caches of arrays on disk and of values in memory, and the content keys of both."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from epmvg.core.types import InputError

Array = NDArray[Any]
V = TypeVar("V")

_PAGE_BYTES = 8192
_LOCK_SECONDS = 60


def content_key(*parts: Any) -> bytes:
    """Return a 16-byte digest of bytes, text, arrays and tensors by their content, of anything else by its JSON."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = _content(part)
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.digest()


def _content(part: Any) -> bytes:
    if isinstance(part, bytes):
        return part
    if isinstance(part, str):
        return part.encode(errors="surrogatepass")
    if hasattr(part, "detach"):
        import torch

        part = part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    if isinstance(part, np.ndarray):
        return part.tobytes()
    return json.dumps(part, sort_keys=True, default=str).encode()


class DiskCache:
    """Arrays of any shape by content key, in one SQLite file that threads and processes share.

    A write is a transaction, so a killed process leaves no torn entry. Put the file on a disk with working locks.

    Args:
        path: The file; it is created where absent.
        max_bytes: Bound of the file; for new arrays those are removed that were written, or looked up by `missing`,
            longest ago (`get` marks nothing, so that reading takes no lock). None for no bound.

    Raises:
        InputError: The file is damaged or cannot be written, here or in any method.
    """

    def __init__(self, path: Path, max_bytes: int | None = None) -> None:
        self.path, self.max_bytes = path, max_bytes
        self._connections = threading.local()
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection()

    def __reduce__(self) -> tuple[type[DiskCache], tuple[Path, int | None]]:
        return DiskCache, (self.path, self.max_bytes)

    def __len__(self) -> int:
        with self._errors():
            return int(self._connection().execute("SELECT COUNT(*) FROM arrays").fetchone()[0])

    @property
    def nbytes(self) -> int:
        """Bytes of the file that hold arrays and their keys."""
        with self._errors():
            query = "SELECT page_count - freelist_count FROM pragma_page_count, pragma_freelist_count"
            return int(self._connection().execute(query).fetchone()[0]) * _PAGE_BYTES

    def get(self, keys: Sequence[bytes]) -> list[Array | None]:
        """Return the array of each key, read-only, or None."""
        query = "SELECT dtype, shape, content FROM arrays WHERE key = ?"
        with self._errors():
            rows = [self._connection().execute(query, (key,)).fetchone() for key in keys]
        return [None if row is None else np.frombuffer(row[2], row[0]).reshape(json.loads(row[1])) for row in rows]

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """Return the indices of the keys without an array, each key once, and mark the others as used."""
        with self._errors(), self._transaction() as connection:
            update = "UPDATE arrays SET used = ? WHERE key = ?"
            first = {key: index for index, key in reversed(list(enumerate(keys)))}
            absent = [i for key, i in first.items() if not connection.execute(update, (time.time(), key)).rowcount]
            return sorted(absent)

    def put(self, keys: Sequence[bytes], arrays: Sequence[Array]) -> None:
        """Add arrays; a key that is there already keeps its array."""
        rows = [
            (key, time.time(), array.dtype.str, json.dumps(array.shape), array.tobytes())
            for key, array in zip(keys, arrays, strict=True)
        ]
        with self._errors(), self._transaction() as connection:
            connection.executemany("INSERT OR IGNORE INTO arrays VALUES (?, ?, ?, ?, ?)", rows)
            while self.max_bytes is not None and self.nbytes > self.max_bytes:
                oldest = "SELECT rowid FROM arrays ORDER BY used, rowid LIMIT 1 + (SELECT COUNT(*) / 64 FROM arrays)"
                if not connection.execute(f"DELETE FROM arrays WHERE rowid IN ({oldest})").rowcount:
                    break

    def _connection(self) -> sqlite3.Connection:
        """Return this thread's connection; one that was opened before a fork belongs to the parent process."""
        if getattr(self._connections, "process", None) != os.getpid():
            connection = sqlite3.connect(self.path, timeout=_LOCK_SECONDS, isolation_level=None)
            connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            # As fast as WAL within the noise of one run, but one file, and usable on several machines in turn. An
            # append-only memory-mapped file read vectors alike and maps of 41 kB twice as fast (18 against 36 us), but
            # all its arrays have one shape, and it cannot drop old ones.
            connection.execute("PRAGMA journal_mode = TRUNCATE")
            connection.execute("PRAGMA synchronous = OFF")  # a cache may be lost with the power
            connection.execute(
                "CREATE TABLE IF NOT EXISTS arrays"
                " (key BLOB PRIMARY KEY, used REAL, dtype TEXT, shape TEXT, content BLOB)"
            )
            self._connections.process, self._connections.connection = os.getpid(), connection
        opened: sqlite3.Connection = self._connections.connection
        return opened

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise InputError(
                f"The cache {self.path} cannot be used ({error}). Delete it if it is damaged, free some space, or set"
                " EPMVG_CACHE to another folder."
            ) from error


class LruCache(Generic[V]):
    """Values by key within a number of bytes; the least recently used are removed first. Safe for threads.

    Args:
        max_bytes: Bound of the sum of all sizes.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.nbytes = max_bytes, 0
        self._entries: OrderedDict[bytes, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> V | None:
        """Return the value of a key, or None."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, key: bytes, value: V, nbytes: int) -> None:
        """Add or replace a value of a size in bytes; one larger than the cache is not kept."""
        with self._lock:
            if key in self._entries:
                self.nbytes -= self._entries.pop(key)[1]
            if nbytes > self.max_bytes:
                return
            self._entries[key] = value, nbytes
            self.nbytes += nbytes
            while self.nbytes > self.max_bytes:
                self.nbytes -= self._entries.popitem(last=False)[1][1]
