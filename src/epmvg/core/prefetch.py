"""The next item of an iterable is made while its user works on the one before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetched(items: Iterable[T]) -> Iterator[T]:
    """Yield items, made one ahead in a thread; what making them raises is raised here."""
    rest, end = iter(items), object()
    with ThreadPoolExecutor(1) as maker:
        ahead = maker.submit(next, rest, end)
        while (item := ahead.result()) is not end:
            ahead = maker.submit(next, rest, end)
            yield item  # type: ignore[misc]  # not the end
