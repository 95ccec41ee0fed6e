"""Measurements that take turns, so that what else the machine does hits all alike. Nothing here imports torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

Measured = TypeVar("Measured")


def interleaved(measures: Sequence[Callable[[], Measured]], rounds: int) -> list[list[Measured]]:
    """Take each measurement once a round; return those of each, without the first round, which warms up."""
    taken: list[list[Measured]] = [[] for _ in measures]
    for number in range(rounds + 1):
        for measure, values in zip(measures, taken, strict=True):
            value = measure()
            if number:
                values.append(value)
    return taken


def timer(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> Callable[[], float]:
    """Return the measurement of the seconds that `run` takes by a clock."""

    def seconds() -> float:
        start = clock()
        run()
        return clock() - start

    return seconds
