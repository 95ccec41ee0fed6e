"""What any of several processes may find wrong alone ends all of them, with one sentence and without waiting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from epmvg.core.distributed import gathered, told
from epmvg.core.types import InputError


@contextmanager
def agreed() -> Iterator[None]:
    """Do what may fail on one process only; where it fails on any, it fails on all.

    What is done inside must not wait for the other processes.

    Raises:
        InputError: this process's own, or the first that another process had.
    """
    own: InputError | None = None
    try:
        yield
    except InputError as error:
        own = error
    first = next((each for each in told(gathered(None if own is None else str(own))) if each is not None), None)
    if own is not None:
        raise own
    if first is not None:
        raise InputError(first)
