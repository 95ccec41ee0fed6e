"""The demo replaces only its own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from epmvg.config.settings import Recipe
from epmvg.core.files import write_rows
from epmvg.core.types import InputError, Report
from epmvg.data.registry import open_samples
from epmvg.distill.pretrain import TeacherMetrics
from epmvg.evaluation.statistics import accuracy
from epmvg.experiments import demo
from epmvg.experiments.demo import FILES, FOLDERS, MARKER, _prepare_folder
from epmvg.experiments.parallel import Part
from epmvg.experiments.plan import count_steps


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


def test_the_demo_compares_its_students_on_the_same_phrases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the trainings faked: the better student is drawn, both are in the report, the difference is in points."""
    trained: dict[str, Recipe] = {}

    def train(recipe: Recipe, folder: Path, *, report: Report) -> None:
        trained[folder.name] = recipe
        folder.mkdir()
        report({"event": "step"})

    def evaluate(folder: Path, split: str) -> dict[str, Any]:
        """The distilled student finds the targets of all phrases, the plain one those of half."""
        data = trained[folder.name].data
        samples = open_samples(data.name, split=split, root=data.root)
        rows = [
            {"image": str(sample.image), "phrase": sample.phrase, "target": sample.box, "iou": iou, "box": sample.box}
            for number, sample in enumerate(samples)
            for iou in [float(folder.name == "distilled" or number % 2)]
        ]
        write_rows(folder / f"predictions-scenes-{split}.jsonl", rows)
        return {"acc50": accuracy(rows), "miou": 0.4}

    def in_turn(parts: dict[str, Part], out: Path, quick: bool, report: Report) -> dict[str, Any]:
        return {name: value for part in parts.values() for name, value in part(out, quick, report).items()}

    drawn: list[Path] = []
    monkeypatch.setattr(demo, "train", train)
    monkeypatch.setattr(demo, "evaluate", evaluate)
    metrics = TeacherMetrics(0.5, 0.8, 1, 80, 140, 1.0)
    monkeypatch.setattr(demo, "train_teacher", lambda *_, progress, **settings: progress(1, 1) or metrics)
    monkeypatch.setattr(demo, "run_parallel", in_turn)
    monkeypatch.setattr(demo, "write_report", lambda runs, out: out.write_text("report"))
    monkeypatch.setattr(demo, "_draw", lambda run, scenes, file: drawn.append(run))
    events: list[str] = []
    summary = demo.run_demo(tmp_path / "demo", quick=True, report=lambda row: events.append(row["event"]))

    plain, distilled = trained["plain"], trained["distilled"]
    assert plain.distill is None and distilled.distill is not None
    assert plain.model_copy(update={"train": distilled.train}) == distilled.model_copy(update={"distill": None})
    assert count_steps(plain, 1399) == pytest.approx(count_steps(distilled, 1399), rel=0.03)
    assert Path(str(distilled.distill.unlabeled)).is_file()
    assert drawn == [tmp_path / "demo" / "distilled"] and {"message", "progress", "step"} <= set(events)
    for key, difference in summary["difference"].items():
        assert difference["points"] == pytest.approx(100 * (1 - summary["plain"][key]))
    assert summary["teacher"]["r1"] == 0.5 and summary["scenes"] == demo.QUICK_SIZES
    assert json.loads((tmp_path / "demo" / "summary.json").read_text()) == summary
