"""Several processes that a launcher (torchrun, accelerate) started together: rank, world size, exchange of objects."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from epmvg.core.types import InputError

T = TypeVar("T")

PATIENCE = timedelta(days=1)
"""How long a process waits for another's part of the work; that one has ended is noticed at once."""


def launched() -> tuple[int, int]:
    """Return (rank, world size) as the launcher's variables state them; (0, 1) without a launcher.

    Raises:
        InputError: only some of RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set, or they do not fit together.
    """
    if not os.environ.get("RANK") and os.environ.get("WORLD_SIZE", "1") in ("", "1"):
        return 0, 1
    rank, world = _variable("RANK"), _variable("WORLD_SIZE")
    if world > 1:
        _variable("MASTER_PORT")
        if not os.environ.get("MASTER_ADDR"):
            raise _half_set("MASTER_ADDR")
    if not 0 <= rank < world:
        raise InputError(f"RANK={rank} does not fit WORLD_SIZE={world}: {_LAUNCHER}.")
    return rank, world


_LAUNCHER = "start with torchrun, or unset RANK and WORLD_SIZE for a single process"


def _variable(name: str) -> int:
    value = os.environ.get(name, "")
    if not value:
        raise _half_set(name)
    if not value.isdecimal():
        raise InputError(f"{name}={value} is not a whole number: {_LAUNCHER}.")
    return int(value)


def _half_set(missing: str) -> InputError:
    stated = [name for name in ("RANK", "WORLD_SIZE") if os.environ.get(name)]
    return InputError(f"{' and '.join(stated)} set but {missing} is not: {_LAUNCHER}.")


@contextmanager
def together() -> Iterator[tuple[int, int]]:
    """Join the process group of the launcher; yield rank and world size, 0 and 1 for a single process.

    Raises:
        InputError: the launcher's variables are incomplete, or another process ended.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        yield dist.get_rank(), dist.get_world_size()
        return
    if launched()[1] == 1:
        yield 0, 1
        return
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield dist.get_rank(), dist.get_world_size()
    except RuntimeError as error:
        if is_lost_process(error):
            raise InputError("Another process ended: correct what its message names, and start all again.") from error
        raise
    finally:
        dist.destroy_process_group()


def is_lost_process(error: RuntimeError) -> bool:
    """Return whether an error means that another process ended, which its connection reports at once."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error)


def gathered(own: T) -> list[T]:
    """Gather one object of each process on the first, in order of rank; the others get an empty list."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    first = dist.get_rank() == 0
    everyone: list[T] = [own] * dist.get_world_size() if first else []
    dist.gather_object(own, everyone if first else None)
    return everyone


def told(word: T) -> T:
    """Broadcast an object of the first process to all."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return word
    words = [word]
    dist.broadcast_object_list(words)
    return words[0]
