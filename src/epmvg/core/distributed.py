"""Rank, world size and exchange of objects between the processes that a launcher (torchrun, accelerate) started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from epmvg.core.types import InputError

T = TypeVar("T")

TIMEOUT = timedelta(days=1)
"""How long a process waits for the others' part of the work; one that has ended is noticed at once."""

_ADVICE = "start with torchrun, or unset RANK and WORLD_SIZE for a single process"


def rank_and_world_size() -> tuple[int, int]:
    """Return (rank, world size) as the launcher's variables state them; (0, 1) without a launcher.

    Raises:
        InputError: Only some of RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set, or they contradict each other.
    """
    if not os.environ.get("RANK") and os.environ.get("WORLD_SIZE", "1") in ("", "1"):
        return 0, 1
    rank, world_size = _integer("RANK"), _integer("WORLD_SIZE")
    if world_size > 1:
        _integer("MASTER_PORT")
        _text("MASTER_ADDR")
    if not 0 <= rank < world_size:
        raise InputError(f"RANK={rank} does not fit WORLD_SIZE={world_size}: {_ADVICE}.")
    return rank, world_size


def _text(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        stated = [variable for variable in ("RANK", "WORLD_SIZE") if os.environ.get(variable)]
        raise InputError(f"{' and '.join(stated)} set but {name} is not: {_ADVICE}.")
    return value


def _integer(name: str) -> int:
    value = _text(name)
    if not value.isdecimal():
        raise InputError(f"{name}={value} is not a whole number: {_ADVICE}.")
    return int(value)


@contextmanager
def process_group() -> Iterator[tuple[int, int]]:
    """Join the launcher's process group; yield rank and world size, (0, 1) for a single process.

    Raises:
        InputError: The launcher's variables are incomplete, or another process ended.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        yield dist.get_rank(), dist.get_world_size()
        return
    if rank_and_world_size()[1] == 1:
        yield 0, 1
        return
    dist.init_process_group("gloo", timeout=TIMEOUT)
    try:
        yield dist.get_rank(), dist.get_world_size()
    except RuntimeError as error:
        if is_lost_process(error):
            raise InputError("Another process ended: correct what its message names, and start all again.") from error
        raise
    finally:
        dist.destroy_process_group()


def is_lost_process(error: RuntimeError) -> bool:
    """Return whether an error means that another process ended."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error)


def gather(value: T) -> list[T]:
    """Gather one object of each process on the first, in order of rank; the others get an empty list."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    first = dist.get_rank() == 0
    values: list[T] = [value] * dist.get_world_size() if first else []
    dist.gather_object(value, values if first else None)
    return values


def broadcast(value: T) -> T:
    """Return the first process's object on all processes."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]
