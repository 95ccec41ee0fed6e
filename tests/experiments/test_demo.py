"""The demo replaces only its own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from epmvg.config.settings import Recipe
from epmvg.core.types import InputError
from epmvg.experiments import demo
from epmvg.experiments.demo import FILES, FOLDERS, MARKER, _prepare_folder
from epmvg.experiments.parallel import Part, Report


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


def test_the_demo_writes_its_files_and_a_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the trainings faked: the student of the best accuracy is drawn, and both are in the report."""
    metrics = {"acc50": 0.5, "miou": 0.4}
    trained: list[Path] = []

    def train(recipe: Any, folder: Path, *, report: Report) -> None:
        trained.append(folder)
        report({"event": "step"})

    def in_turn(parts: dict[str, Part], out: Path, quick: bool, report: Report) -> dict[str, Any]:
        return {name: value for part in parts.values() for name, value in part(out, quick, report).items()}

    drawn: list[Path] = []
    monkeypatch.setattr(demo, "train", train)
    monkeypatch.setattr(demo, "evaluate", lambda folder, split: metrics | {"acc50": 0.5 + (folder.name == "distilled")})
    monkeypatch.setattr(
        demo, "train_teacher", lambda *_, progress, **settings: progress(1, 1) or Recipe.load("scenes").loss
    )
    monkeypatch.setattr(demo, "asdict", lambda _: {"val_loss": 1.0})
    monkeypatch.setattr(demo, "run_parallel", in_turn)
    monkeypatch.setattr(demo, "write_report", lambda runs, out: out.write_text("report"))
    monkeypatch.setattr(demo, "_draw", lambda run, scenes, file: drawn.append(run))
    events: list[str] = []
    summary = demo.run_demo(tmp_path / "demo", quick=True, report=lambda row: events.append(row["event"]))
    assert trained == [tmp_path / "demo" / name for name in ("plain", "distilled")]
    assert drawn == [tmp_path / "demo" / "distilled"] and {"say", "store", "step"} <= set(events)
    assert summary["distilled"]["acc50"] == 1.5 and summary["teacher"]["val_loss"] == 1.0
    assert (tmp_path / "demo" / "scenes" / "annotations.jsonl").exists()
