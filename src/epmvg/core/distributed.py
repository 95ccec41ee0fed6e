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


def rank_and_world_size() -> tuple[int, int]:
    """Return (rank, world size) as the launcher's variables state them; (0, 1) without a launcher.

    Raises:
        InputError: Only some of RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set, or they contradict each other.
    """
    if not os.environ.get("RANK") and os.environ.get("WORLD_SIZE", "1") in ("", "1"):
        return 0, 1
    names = ("RANK", "WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR")
    rank, world_size, port, address = (os.environ.get(name, "") for name in names)
    is_complete = rank.isdecimal() and world_size.isdecimal() and int(rank) < int(world_size)
    if not is_complete or (int(world_size) > 1 and not (port.isdecimal() and address)):
        stated = ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
        raise InputError(
            f"{stated} are not the variables of a launcher ({', '.join(names)}). "
            "Start with torchrun, or unset RANK and WORLD_SIZE for a single process."
        )
    return int(rank), int(world_size)


@contextmanager
def process_group() -> Iterator[tuple[int, int]]:
    """Join the launcher's process group; yield rank and world size, (0, 1) for a single process.

    Raises:
        InputError: The launcher's variables are incomplete, or another process ended.
    """
    import torch.distributed as dist

    if _is_joined():
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
            raise InputError("Another process ended. Correct what its message names, and start all again.") from error
        raise
    finally:
        dist.destroy_process_group()


def _is_joined() -> bool:
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def is_lost_process(error: RuntimeError) -> bool:
    """Return whether an error means that another process ended."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error)


def gather(value: T) -> list[T]:
    """Gather one object of each process on the first, in order of rank; the others get an empty list."""
    import torch.distributed as dist

    if not _is_joined():
        return [value]
    first = dist.get_rank() == 0
    values: list[T] = [value] * dist.get_world_size() if first else []
    dist.gather_object(value, values if first else None)
    return values


def broadcast(value: T) -> T:
    """Return the first process's object on all processes."""
    import torch.distributed as dist

    if not _is_joined():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]
