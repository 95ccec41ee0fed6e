"""The demo replaces what an earlier one made and nothing else, and its parts stop as soon as one of them fails."""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from typing import Any

import pytest

from epmvg.core.types import InputError
from epmvg.experiments.demo import FILES, FOLDERS, MARKER, _prepare_folder, _run_part, _Stopped
from epmvg.training import Report


def test_an_earlier_demo_is_replaced_and_other_files_are_kept(tmp_path: Path) -> None:
    for name in (*FOLDERS, "myrun"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("weights")
    for name in (*FILES, MARKER, "notes.txt"):
        (tmp_path / name).write_text("text")
    _prepare_folder(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"myrun", "notes.txt", MARKER}
    assert (tmp_path / "myrun" / "model.safetensors").read_text() == "weights"


def test_a_folder_of_something_else_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with pytest.raises(InputError, match="holds no earlier demo"):
        _prepare_folder(tmp_path)
    assert (tmp_path / "plain").exists()


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
    assert rows.get_nowait() == {"step": 1, "who": "plain"} and rows.empty()
