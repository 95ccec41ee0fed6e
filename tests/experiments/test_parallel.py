"""Parts of the demo stop when one of them fails, and end with the process that started them."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from epmvg.core.types import InputError, Report
from epmvg.experiments.parallel import _run_part, _Stopped, run_parallel


def test_a_part_stops_at_its_next_report_once_another_failed(tmp_path: Path) -> None:
    rows: queue.Queue[dict[str, Any]] = queue.Queue()
    failed = threading.Event()

    def part(out: Path, quick: bool, report: Report) -> dict[str, Any]:
        report({"step": 1})
        failed.set()
        report({"step": 2})
        return {}

    with pytest.raises(_Stopped):
        _run_part("plain", part, tmp_path, True, 1, rows, failed)
    assert rows.get_nowait() == {"step": 1, "run": "plain"} and rows.empty()


def _ok(out: Path, quick: bool, report: Report) -> dict[str, Any]:
    report({"event": "step"})
    return {"ok": 1}


def _fails(out: Path, quick: bool, report: Report) -> dict[str, Any]:
    raise InputError("this part fails")


def test_the_error_of_a_part_in_a_process_is_raised(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    with pytest.raises(InputError, match="this part fails"):
        run_parallel({"a": _ok, "b": _fails}, tmp_path, True, rows.append)
    assert rows in ([], [{"event": "step", "run": "a"}])


def _reports_often(out: Path, quick: bool, report: Report) -> dict[str, Any]:
    for _ in range(3000):
        report({"event": "step"})
        time.sleep(0.005)
    (out / "ended").touch()
    return {}


def test_the_parts_stop_with_a_demo_that_is_interrupted(tmp_path: Path) -> None:
    def interrupt(row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_parallel({"a": _reports_often}, tmp_path, True, interrupt)
    assert not (tmp_path / "ended").exists()


SLEEPERS = """
import os, sys, time
from pathlib import Path
from epmvg.experiments.parallel import run_parallel

def sleep(out, quick, report):
    (out / f"{os.getpid()}.pid").touch()
    time.sleep(300)

if __name__ == "__main__":
    run_parallel({"a": sleep, "b": sleep}, Path(sys.argv[1]), True, print)
"""


def test_the_parts_end_with_a_demo_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "sleepers.py"
    script.write_text(SLEEPERS)
    with subprocess.Popen([sys.executable, str(script), str(tmp_path)]) as process:
        try:
            _wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
            children = psutil.Process(process.pid).children(recursive=True)
            assert {int(file.stem) for file in tmp_path.glob("*.pid")} <= {child.pid for child in children}
        finally:
            process.terminate()
    _wait_until(lambda: not any(map(_is_running, children)))


def _wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def _is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)  # one that nothing waits for stays a zombie
    except psutil.NoSuchProcess:
        return False
