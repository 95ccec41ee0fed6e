"""Measurements that take turns, so that what else the machine does hits all alike. Nothing here imports torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

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


def wall_and_cpu(run: Callable[[], object]) -> NDArray[np.float64]:
    """Return wall and processor seconds [2] of a run.

    On a machine shared with others processor seconds, of all threads together, are the steadier figure.
    """
    start = time.perf_counter(), time.process_time()
    run()
    return np.array([time.perf_counter(), time.process_time()]) - start
