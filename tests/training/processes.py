"""Start some work in several processes at once, as a launcher would."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import warnings
from collections.abc import Callable

import accelerate
import torch

from epmvg.core.types import InputError

PATIENCE = 120  # seconds; work here takes a few


def together(count: int, work: Callable[[], object]) -> list[int | None]:
    """Run `work` in as many processes; return their exit statuses, 2 for an `InputError`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")  # torch and the fixtures are loaded already
    children = [context.Process(target=_child, args=(rank, count, port, work)) for rank in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join(PATIENCE)
    stuck = [child for child in children if child.is_alive()]
    for child in stuck:
        child.kill()
        child.join()
    assert not stuck, f"{len(stuck)} of {count} processes did not end within {PATIENCE} s"
    return [child.exitcode for child in children]


def _child(rank: int, count: int, port: int, work: Callable[[], object]) -> None:
    warnings.simplefilter("default")  # of DDP about strides, which cost it time
    torch.set_num_threads(1)  # a forked process must not wait for its parent's threads
    accelerate.state.AcceleratorState._reset_state(True)
    if count > 1:
        os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{count}"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    try:
        work()
    except InputError as error:
        print(f"epmvg: {error}", file=sys.stderr, flush=True)
        sys.stderr.flush()
        os._exit(2)
    os._exit(0)
