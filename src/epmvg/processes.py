"""Several processes that a launcher (torchrun, accelerate) started together: who each is, and what they hand on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from epmvg.types import InputError

T = TypeVar("T")

PATIENCE = timedelta(days=1)
"""How long one waits for the others: a share of the work, not a network's hiccup; who ended is noticed at once."""


@contextmanager
def together() -> Iterator[tuple[int, int]]:
    """Join the processes that were started together; yield this one's rank and their number, 0 and 1 if it is alone.

    Raises:
        InputError: one of the others ended.
    """
    if dist.is_available() and dist.is_initialized():
        yield dist.get_rank(), dist.get_world_size()
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0, 1
        return
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield dist.get_rank(), dist.get_world_size()
    except RuntimeError as error:
        if is_lost_process(error):
            raise InputError("Another of the processes ended: mend what it said, and start them again.") from error
        raise
    finally:
        dist.destroy_process_group()


def is_lost_process(error: RuntimeError) -> bool:
    """Say whether an error means that another process ended, which its connection reports at once."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def gathered(own: T) -> list[T]:
    """Hand what each process has to the first, in order of rank; the others get an empty list."""
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    first = dist.get_rank() == 0
    everyone: list[T] = [own] * dist.get_world_size() if first else []
    dist.gather_object(own, everyone if first else None)
    return everyone


def told(word: T) -> T:
    """Return what the first process says, on every process."""
    if not (dist.is_available() and dist.is_initialized()):
        return word
    words = [word]
    dist.broadcast_object_list(words)
    return words[0]
