"""Run the parts of the demo in parallel processes, which end with the process that started them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

from epmvg.core.hardware import cpu_threads
from epmvg.core.types import Report

Part = Callable[[Path, bool, Report], dict[str, Any]]
"""Called with the demo's folder, whether it is the quick version, and a report of rows of metrics."""


def run_parallel(parts: dict[str, Part], out: Path, quick: bool, report: Report) -> dict[str, Any]:
    """Run each part in a process with its fraction of the cores, and merge their results.

    Two processes use two cores better than the threads of one: the networks are small. When a part fails, or this is
    interrupted, the others stop at their next report. The processes end with this one, however it ends.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, cpu_threads() // len(parts))
    manager = SyncManager(ctx=context)
    manager.start(_exit_with_parent)
    with manager, ProcessPoolExecutor(len(parts), mp_context=context, initializer=_exit_with_parent) as pool:
        rows: queue.Queue[dict[str, Any]] = manager.Queue()
        failed = manager.Event()
        running = [
            pool.submit(_run_part, name, part, out, quick, threads, rows, failed) for name, part in parts.items()
        ]
        try:
            while not all(each.done() for each in running) or not rows.empty():
                with contextlib.suppress(queue.Empty):
                    report(rows.get(timeout=0.2))
                if any(each.done() and each.exception() for each in running):
                    failed.set()
        except BaseException:
            failed.set()
            raise
        errors = [error for each in running if (error := each.exception())]
        if errors:
            raise next((error for error in errors if not isinstance(error, _Stopped)), errors[0])
        return {name: value for each in running for name, value in each.result().items()}


def _exit_with_parent() -> None:
    """End this process as soon as its parent has ended, by a signal too, which runs no cleanup there."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_part(
    name: str,
    part: Part,
    out: Path,
    quick: bool,
    threads: int,
    rows: queue.Queue[dict[str, Any]],
    failed: threading.Event,
) -> dict[str, Any]:
    def report(row: dict[str, Any]) -> None:
        if failed.is_set():
            raise _Stopped
        rows.put(row | {"run": name})

    import torch  # takes a second

    torch.set_num_threads(threads)
    return part(out, quick, report)


class _Stopped(Exception):  # noqa: N818  # the error of another part is raised instead
    """A part of the demo stops because another failed."""
