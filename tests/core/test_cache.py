"""Disk cache, memory cache and content keys."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from epmvg.core.cache import DiskCache, LruCache, content_key
from epmvg.core.types import InputError


def key(number: int) -> bytes:
    return content_key(number)


def test_keys_depend_on_every_part_and_its_borders() -> None:
    array = np.arange(4, dtype=np.float32)
    parts = [("ab", "c"), ("a", "bc"), ("abc",), (b"abc", ""), ({"a": 1},), ({"a": 2},), (array,), (array + 1,)]
    assert len({content_key(*part) for part in parts}) == len(parts)
    assert content_key("a", array) == content_key(b"a", torch.from_numpy(array)) and len(content_key()) == 16
    assert content_key(torch.ones(2, dtype=torch.bfloat16)) != content_key(torch.zeros(2, dtype=torch.bfloat16))
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1}) and content_key("\udcff")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16, np.bool_])
def test_arrays_are_read_back_exactly(tmp_path: Path, dtype: type) -> None:
    cache = DiskCache(tmp_path / "folder" / "cache.sqlite")
    shapes: list[Any] = [(3,), (2, 5), (1, 0, 2), ()]
    arrays: list[Any] = [np.random.default_rng(0).random(shape).astype(dtype) for shape in shapes]
    cache.put([key(n) for n in range(4)], arrays)
    cache.put([key(0)], [np.zeros(1)])
    found = DiskCache(cache.path).get([key(9), *(key(n) for n in range(4))])
    assert found[0] is None and len(cache) == 4
    for array, again in zip(arrays, found[1:], strict=True):
        assert again is not None and again.dtype == dtype and np.array_equal(again, array)
    assert cache.missing([key(8), key(1), key(8), key(7)]) == [0, 3]


def put_many(cache: DiskCache, start: int) -> None:
    for number in range(start, start + 30):
        cache.put([key(number)], [np.full(4, number)])


def test_several_processes_write_one_file(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache.sqlite")
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=put_many, args=(cache, start)) for start in (0, 30)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [int(array[0]) for array in cache.get([key(n) for n in range(60)]) if array is not None] == list(range(60))
    assert len(pickle.loads(pickle.dumps(cache))) == 60
    assert [file.name for file in tmp_path.iterdir() if file.stat().st_size] == ["cache.sqlite"]


def put_until_killed(path: Path) -> None:
    cache = DiskCache(path)
    for number in range(1_000_000):
        cache.put([key(2 * number), key(2 * number + 1)], [np.full(5000, number)] * 2)
        if number == 20:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_writer_leaves_whole_arrays(tmp_path: Path) -> None:
    writer = multiprocessing.get_context("fork").Process(target=put_until_killed, args=(tmp_path / "cache.sqlite",))
    writer.start()
    writer.join()
    cache = DiskCache(tmp_path / "cache.sqlite")
    assert len(cache) == 42
    assert all(
        array is not None and (array == n // 2).all() for n, array in enumerate(cache.get(list(map(key, range(42)))))
    )


def test_arrays_written_or_looked_up_longest_ago_are_removed_first(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache.sqlite", max_bytes=1_000_000)
    for number in range(10):
        cache.put([key(number)], [np.zeros(80_000, np.uint8)])
    assert cache.missing([key(0)]) == []
    for number in range(10, 16):
        cache.put([key(number)], [np.zeros(80_000, np.uint8)])
    assert cache.nbytes <= 1_000_000 and cache.path.stat().st_size < 1_300_000
    kept = [number for number, array in enumerate(cache.get([key(n) for n in range(16)])) if array is not None]
    assert 0 in kept and 1 not in kept and kept[-6:] == [10, 11, 12, 13, 14, 15]
    cache.put([key(99)], [np.zeros(2_000_000, np.uint8)])
    assert cache.get([key(99)]) == [None]


def test_a_damaged_file_and_a_folder_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "cache.sqlite").write_bytes(b"not a database" * 1000)
    with pytest.raises(InputError, match=r"cache\.sqlite cannot be used .*Delete it"):
        DiskCache(tmp_path / "cache.sqlite")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="EPMVG_CACHE"):
        DiskCache(tmp_path / "file" / "cache.sqlite")


def test_a_failed_write_changes_nothing(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache.sqlite")
    with pytest.raises(InputError, match="cannot be used"):
        cache.put([key(2), {}], [np.zeros(1), np.zeros(1)])  # type: ignore[list-item]
    assert cache.get([key(2)]) == [None]


def test_memory_is_bounded_and_what_is_used_stays() -> None:
    cache: LruCache[str] = LruCache(10)
    for name in "abc":
        cache.put(name.encode(), name, 4)
    assert cache.get(b"a") is None and cache.get(b"b") == "b" and (len(cache), cache.nbytes) == (2, 8)
    cache.put(b"d", "d", 4)
    assert cache.get(b"c") is None and cache.get(b"b") == "b"
    cache.put(b"b", "larger", 6)
    cache.put(b"e", "too large", 11)
    assert cache.get(b"b") == "larger" and cache.get(b"e") is None and cache.nbytes == 10
