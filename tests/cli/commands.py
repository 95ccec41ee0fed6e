"""Helpers of the command line's tests."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from epmvg.cli import main


def epmvg_command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "epmvg", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "200"} | environment,
    )


def main_ok(arguments: list[object]) -> None:
    """Run a command in this process, which has to succeed."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 0
