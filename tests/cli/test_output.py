"""Tests of what commands print; the work itself is replaced, and has tests of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import main_ok

from epmvg.cli import main
from epmvg.distill.pretrain import TeacherMetrics
from epmvg.training import TrainingStopped

Replace = Callable[[str, Any], dict[str, Any]]


@pytest.fixture
def replace(monkeypatch: pytest.MonkeyPatch) -> Replace:
    """Replace a function by one that returns a result; returns the arguments it will be called with."""

    def set_result(name: str, result: Any) -> dict[str, Any]:
        calls: dict[str, Any] = {}

        def fake(*args: Any, **kwargs: Any) -> Any:
            calls.update(args=args, **kwargs)
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setattr(name, fake)
        return calls

    return set_result


def test_data_commands_print_tables(squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main_ok(["data", "stats", squares])
    assert "phrases" in capsys.readouterr().out
    main_ok(["data", "convert", squares, "--to", tmp_path / "new" / "coco.json", "--split", "val"])
    printed = capsys.readouterr().out
    assert printed.startswith("24 phrases of 6 images are in ") and "Image paths are relative to" in printed
    main_ok(["data", "split", squares, "0.5/0.25/0.25", "--out", tmp_path / "split.jsonl"])
    assert "train" in capsys.readouterr().out
    main_ok(["data", "stats", squares, "--json"])
    assert json.loads(capsys.readouterr().out)["splits"]["val"]["phrases"] == 24
    main_ok(["data", "convert", squares, "--to", tmp_path / "all.jsonl", "--json"])
    assert json.loads(capsys.readouterr().out)["samples"] == 48


def test_data_check_prints_issues_and_sets_the_exit_status(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main_ok(["data", "check", squares, "--write-clean", tmp_path / "clean.jsonl"])
    assert "48 annotations without errors are in" in capsys.readouterr().out
    rows = [json.loads(line) for line in squares.read_text().splitlines()]
    rows[0]["image"] = "none.png"
    broken = squares.with_name("broken.jsonl")
    broken.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", str(broken)])
    assert ended.value.code == 3 and "image-missing" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", str(broken), "--json"])
    assert ended.value.code == 3 and json.loads(capsys.readouterr().out)


def test_demo_prints_the_scores(replace: Replace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = {"acc50": 0.5, "miou": 0.4, "open_vocabulary_acc50": 0.3, "seconds": 12.3}
    difference = {key: {"points": 6.25, "low": 4.0, "high": -8.5} for key in ("acc50", "open_vocabulary_acc50")}
    scenes = {"train": 250, "captions": 6000}
    summary = {"scenes": scenes, "plain": scores, "distilled": scores, "difference": difference}
    calls = replace("epmvg.experiments.demo.run_demo", summary)
    main_ok(["demo", "--quick", "--out", tmp_path])
    printed = capsys.readouterr().out
    assert (
        calls["quick"] is True
        and "0.5000" in printed
        and "12.3" in printed
        and "boxes of 250 scenes" in printed
        and "6,000 scenes without boxes" in printed
        and printed.count("+6.2 (+4.0 to -8.5)") == 4  # in the table and the sentence
        and str(tmp_path / "report.html") in printed
    )


def test_a_stopped_training_prints_how_to_continue(
    replace: Replace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replace("epmvg.training.train", TrainingStopped(15, 3, 9))
    with pytest.raises(SystemExit) as ended:
        main(["train", "scenes", "train.epochs=1", "--device", "cpu", "--out", str(tmp_path / "a run")])
    assert ended.value.code == 128 + 15
    command = f"epmvg train scenes train.epochs=1 --out '{tmp_path / 'a run'}' --resume --device cpu"
    assert capsys.readouterr().err.strip() == f"stopped at step 3 of 9. Continue with: {command}"


def test_reproduce_prints_the_table_or_the_plan(
    replace: Replace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes" / "table-3.md").write_text("| a table |")
    replace("epmvg.experiments.reproduce.reproduce", {"plan": None})
    main_ok(["reproduce", "3", "--out", tmp_path])
    assert capsys.readouterr().out.startswith("| a table |")
    run = {"folder": "f", "state": "planned", "phrases": 7, "epochs": 1.0, "steps": None, "hours": None}
    run |= {"parameters": 5, "memory": {8: 12.5}, "settings": {"model.pretrained": False}}
    run["parts"] = [{"part": "student", "source": "random weights", "state": "there"}]
    plan = {"to_run": 1, "settings": {"distill": None}, "runs": [run | {"missing": ["data.root"]}]}
    replace("epmvg.experiments.reproduce.reproduce", {"plan": plan})
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", "3", "--out", str(tmp_path), "--dry-run"])
    printed = capsys.readouterr().out
    assert ended.value.code == 1 and "1 trainings to run" in printed and "Missing: data.root" in printed
    assert "  distill=null\nf:\n  and model.pretrained=false\n  student: random weights, there\n" in printed


def test_teacher_commands_print_what_they_wrote(
    replace: Replace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = replace("epmvg.distill.pretrain.train_teacher", TeacherMetrics(0.25, 0.5, 2, 80, 400, 60.0, skipped=2))
    command = ["teacher", "train", tmp_path / "captions.jsonl", "--out", tmp_path / "t", "--epochs", "3"]
    main_ok(command)
    captured = capsys.readouterr()
    assert calls["epochs"] == 3 and f"The teacher is in {tmp_path / 't'}" in captured.out
    assert "R@1 25.0%, R@5 50.0% (epoch 2), from 400 image-text pairs" in captured.out
    assert captured.err.strip() == f"warning: 2 images were skipped. See {tmp_path / 't' / 'teacher.json'}."
    main_ok(["--quiet", *command])
    assert capsys.readouterr() == (captured.out, "")
    cached = {"embeddings": 1234, "megabytes": 1.5, "seconds": 3, "file": "f.db", "skipped": ["a.jpg is missing"]}
    replace("epmvg.training.cache_teacher", cached)
    main_ok(["teacher", "cache", "scenes", "distill=folder"])
    captured = capsys.readouterr()
    assert captured.out == "1,234 embeddings, 1.5 MB, are in f.db\n"
    assert "warning: skipped a.jpg is missing" in captured.err


def test_convert_counts_parameters(replace: Replace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = SimpleNamespace(converted=["a"] * 3, ignored={"b": "unused"}, new=["head.c"], preset="mini", model="mini")
    replace("epmvg.models.convert.convert", done)
    replace("epmvg.models.convert.write", None)
    main_ok(["convert", tmp_path / "w.pth", "--as", "detr", "--out", tmp_path / "out"])
    printed = capsys.readouterr().out
    assert "converted" in printed and "unused" in printed and "not in the file: head" in printed


def test_export_and_publish_print_their_folder(
    run: Path, replace: Replace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = replace("epmvg.export.export_run", {})
    main_ok(["export", run, "--out", tmp_path / "e", "--int8", "my.jsonl", "--split", "val"])
    assert capsys.readouterr().out == f"The export is in {tmp_path / 'e'}\n" and calls["format"] == "onnx"
    replace("epmvg.hub.save_pretrained", tmp_path / "h")
    main_ok(["publish", run, "--to", tmp_path / "h", "--license", "apache-2.0"])
    assert f"hf upload OWNER/NAME {tmp_path / 'h'}" in capsys.readouterr().out


def test_bench_prints_a_table(replace: Replace, capsys: pytest.CaptureFixture[str]) -> None:
    replace("epmvg.inference.timing.measure", {"load_s": 1.5, "new_image_ms": 20.0})
    main_ok(["bench", "default", "--device", "cpu"])
    assert "load_s        1.5000" in capsys.readouterr().out


def test_serve_without_its_packages_is_one_sentence(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith(("epmvg.serve", "prometheus_client"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(run)])
    assert ended.value.code == 2 and "pip install 'epmvg[serve]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "Out of memory."),
        (OSError(28, "No space left on device", "a.txt"), "a.txt cannot be used (No space left on device). Check"),
    ],
)
def test_system_errors_are_one_sentence(
    error: BaseException, words: str, replace: Replace, capsys: pytest.CaptureFixture[str]
) -> None:
    replace("epmvg.inference.timing.measure", error)
    with pytest.raises(SystemExit) as ended:
        main(["bench", "default"])
    assert ended.value.code == 2 and capsys.readouterr().err.startswith(f"error: {words}")


def test_other_errors_are_raised(replace: Replace) -> None:
    replace("epmvg.inference.timing.measure", RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["bench", "default"])


SCORES = {
    "data": "d",
    "split": "val",
    "n": 8,
    "acc50": 0.5,
    "intervals": {"acc50": [0.4, 0.6]},
    "protocol": "IoU >= 0.5",
}


def test_score_prints_metrics_misses_and_the_comparison(
    replace: Replace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    misses = {"unreadable": ["line 3: no box"], "warnings": ["odd boxes"]}
    metrics = {"acc50": {"points": 1.5, "low": -0.5, "high": 3.5, "p": 0.04}}
    other = {"file": "b.jsonl", "metrics": metrics, "unreadable": []}
    result = SCORES | misses | {"against": other, "metadata": {"data_sha256": "a" * 64}}
    replace("epmvg.evaluation.external.score", result)
    words = ["score", tmp_path / "a.jsonl", "--data", "d", "--against", tmp_path / "b.jsonl"]
    main_ok(words)
    captured = capsys.readouterr()
    assert "0.4000  0.6000" in captured.out and "+1.5 (-0.5 to +3.5)" in captured.out
    assert "counted as misses: 1\n  line 3: no box\n" in captured.out
    assert captured.err == "warning: predictions: odd boxes\n"
    main_ok([*words, "--json"])
    assert json.loads(capsys.readouterr().out)["n"] == 8


def test_evaluate_prints_robustness(run: Path, replace: Replace, capsys: pytest.CaptureFixture[str]) -> None:
    blur = {"name": "blur", "n": 8, "clean_acc50": 0.5, "acc50": 0.25, "moved": 0.1}
    blur["difference"] = {"points": -25.0, "low": -30.0, "high": -20.0}
    clean = {"acc50": 0.5, "n": 8}
    result = {"data": "d", "split": "val", "clean": clean, "perturbations": [blur], "skipped": ["a.jpg is missing"]}
    calls = replace("epmvg.evaluation.robustness.measure_robustness", result)
    main_ok(["evaluate", run, "--robustness"])
    printed = capsys.readouterr().out
    assert calls["split"] is None and "-25.0 (-30.0 to -20.0)" in printed and "the first: a.jpg is missing" in printed
    main_ok(["evaluate", run, "--robustness", "--json"])
    assert json.loads(capsys.readouterr().out)["clean"] == clean


def test_evaluate_and_calibrate_print_tables(run: Path, replace: Replace, capsys: pytest.CaptureFixture[str]) -> None:
    confidence = {"ece": 0.1, "aurc": 0.2, "auroc_correct": 0.9, "auroc_negative": None}
    result = {"data": "d", "split": "val", "n": 8, "acc50": 0.5, "miou": 0.4, "slices": {}}
    result["protocol"] = "IoU >= 0.5"
    result |= {"predictions": "p.jsonl", "intervals": {"acc50": [0.4, 0.6]}}
    replace("epmvg.evaluation.evaluate.evaluate", result | {"confidence": confidence})
    main_ok(["evaluate", run])
    printed = capsys.readouterr().out
    assert "0.4000 to 0.6000" in printed and "0.9000" in printed and "IoU >= 0.5" in printed and "p.jsonl" in printed
    fitted = {"fitted": {"acc50": 0.5, "n": 98}, "method": "none", "threshold": None}
    replace("epmvg.evaluation.calibration.calibrate", fitted)
    main_ok(["calibrate", run, "--fit-head"])
    captured = capsys.readouterr()
    assert "98" in captured.out and captured.err.startswith("warning: no mapping predicts better")
