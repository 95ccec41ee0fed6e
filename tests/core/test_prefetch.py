"""Prefetching: the same items in order, one made ahead, errors in their place."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event

import pytest

from epmvg.core.prefetch import prefetched


def test_the_next_item_is_made_while_one_is_used_and_its_error_comes_in_its_turn() -> None:
    made = [Event() for _ in range(4)]

    def items() -> Iterator[int | None]:
        for number, event in enumerate(made):
            event.set()
            yield None if number == 1 else number
        raise ValueError("the fourth")

    got = []
    with pytest.raises(ValueError, match="the fourth"):
        for number, item in enumerate(prefetched(items())):
            assert number == 3 or made[number + 1].wait(10)
            got.append(item)
    assert got == [0, None, 2, 3]
    assert list(prefetched([])) == []
