"""Tests of the command line: user mistakes are one sentence and exit status 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import epmvg_command, main_ok
from PIL import Image
from typer.main import get_command

import epmvg
from epmvg.cli import app, main


def test_version_and_lists() -> None:
    assert epmvg_command("--version").stdout == f"epmvg {epmvg.__version__}\n"
    listed = json.loads(epmvg_command("list", "--json").stdout)
    assert set(listed) == {"models", "pretrained", "datasets", "recipes", "teachers"}
    assert {row["name"] for row in listed["models"]} == set(epmvg.list_models())
    assert "ViT-B-32" in {row["name"] for row in listed["teachers"]}


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    main_ok(["predict", "--help"])
    assert 'epmvg predict default photo.jpg "the red apple"' in capsys.readouterr().out


def test_quiet_prints_results_only(squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [f"data.name={squares}", "model=tiny-resnet", "model.pretrained=false", "distill=null"]
    settings += [
        "data.augment=null",
        "train.cache_features=false",
        "train.epochs=1",
        "train.log_interval=1",
        "train.warmup_steps=0",
    ]
    captured = {}
    for options in ([], ["--quiet"]):
        out = tmp_path / f"run{len(options)}"
        with pytest.raises(SystemExit) as ended:
            main([*options, "train", "scenes", *settings, "--out", str(out)])
        assert ended.value.code == 0
        captured[len(options)] = capsys.readouterr().out.replace(str(out), "OUT")
    assert "Acc@0.5" in captured[0] and captured[1].startswith("The run is in OUT. Next:\n")
    assert captured[0].endswith(captured[1])


@pytest.mark.parametrize("verb", ["evaluate", "calibrate", "export", "publish", "serve", "predict"])
def test_a_wrong_run_is_rejected_without_torch(verb: str, tmp_path: Path) -> None:
    more = {"export": ["--out", "x"], "publish": ["--to", "x"], "predict": [str(tmp_path / "a.jpg"), "a dog"]}
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    script = (
        "import sys\nfrom epmvg.cli import main\ntry:\n    main(sys.argv[1:])\n"
        "except SystemExit as end:\n    sys.exit(9 if 'torch' in sys.modules else end.code)"
    )
    command = [sys.executable, "-c", script, verb, str(tmp_path / "nope"), *more.get(verb, [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "There is no run" in done.stderr, done.stderr


def test_evaluate_and_report(run: Path, squares: Path) -> None:
    done = epmvg_command("evaluate", run, "--split", "val", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["n"] == 24 and 0 <= result["acc50"] <= 1 and {"data", "split", "protocol", "miou"} <= result.keys()
    rows = [json.loads(line) for line in (run / "predictions-annotations-val.jsonl").read_text().splitlines()]
    assert sum(row["iou"] >= 0.5 for row in rows) / 24 == result["acc50"]
    own = epmvg.evaluate(run, data=str(squares))  # not the rows that it has learned from
    assert (own["split"], own["metadata"]) == ("val", result["metadata"])
    done = epmvg_command("report", run, "--out", run / "report.html")
    assert done.returncode == 0, done.stderr
    assert "<html" in (run / "report.html").read_text()


def mistakes(run: Path, squares: Path, tmp_path: Path) -> dict[str, tuple[list[object], str]]:
    image = squares.parent / "0.png"
    torn = tmp_path / "torn.jpg"
    Image.effect_noise((64, 64), 50).convert("RGB").save(torn)
    torn.write_bytes(torn.read_bytes()[:600])
    outside = tmp_path / "outside.jsonl"
    row = {"image": "0.png", "phrase": "it", "bbox": [90, 0, 5, 5], "width": 80, "height": 60}
    outside.write_text(json.dumps(row) + "\n")
    empty = tmp_path / "empty.jsonl"
    empty.write_text(json.dumps(row | {"bbox": [1, 1, 0, 5]}) + "\n")
    return {
        "missing image": (["predict", run, tmp_path / "none.jpg", "it"], "none.jpg does not exist"),
        "truncated image": (["predict", run, torn, "it"], "torn.jpg cannot be decoded"),
        "empty phrase": (["predict", run, image, " "], "One of the phrases is empty"),
        "phrase of 500 words": (["predict", run, image, "word " * 500], "500 words"),
        "many images without --out": (["predict", run, squares], "Give --out"),
        "no phrase": (["predict", run, image], "No phrase given"),
        "a folder without phrases": (
            ["predict", run, squares.parent, "--out", tmp_path / "p.jsonl"],
            "Give the phrases",
        ),
        "unknown device": (["evaluate", run, "--device", "banana"], "no device 'banana'"),
        "unknown device for perturbations": (
            ["evaluate", run, "--robustness", "--device", "banana"],
            "no device 'banana'",
        ),
        "perturbations on the canvas": (["evaluate", run, "--robustness", "--clip", "canvas"], "Omit --clip canvas"),
        "a split without int8": (
            ["export", run, "--out", tmp_path / "e", "--split", "val"],
            "--split applies to --int8",
        ),
        "a report onto its run": (["report", run, "--out", run / "model.yaml"], "would overwrite the input"),
        "a report of one run twice": (["report", run, run], "given twice"),
        "images as phrases": (["predict", run, image, squares.parent / "1.png", "it"], "--phrase"),
        "several images without --out": (["predict", run, image, image, "-p", "it"], "Give --out"),
        "a pattern without --out": (["predict", run, squares.parent / "*.png", "it"], "Give --out"),
        "drawing onto the input": (["predict", run, image, "it", "--draw", image], "would overwrite the input"),
        "map onto the input": (["predict", run, image, "it", "--heatmap", image], "would overwrite the input"),
        "a drawing onto the map": (
            [
                "predict",
                run,
                image,
                "it",
                "--draw",
                tmp_path / "w.png",
                "--heatmap",
                tmp_path / "nope" / ".." / "w.png",
            ],
            "are both",
        ),
        "a URL": (["predict", run, "https://example.org/a.jpg?size=1", "it"], "URLs are not fetched"),
        "an empty image": (["predict", run, "", "it"], "The image is an empty string"),
        "candidates in COCO": (["predict", run, image, "it", "--top-k", "2", "--format", "coco"], "one box per phrase"),
        "score above 1": (["predict", run, image, "it", "--min-score", "2"], "--min-score is 2"),
        "score that is not a number": (["predict", run, image, "it", "--min-score", "nan"], "--min-score is nan"),
        "no such device": (["predict", run, image, "it", "--device", "banana"], "no device 'banana'"),
        "a shard of an image": (["predict", run, image, "it", "--shard", "0/2"], "--shard applies to many images"),
        "two outputs": (["predict", run, image, "it", "--json", "--format", "coco"], "two outputs"),
        "a map of many": (
            ["predict", run, squares, "--out", tmp_path / "p.jsonl", "--heatmap", tmp_path / "w.png"],
            "--heatmap applies to one image",
        ),
        "no shard": (["predict", run, squares, "--out", tmp_path / "p.jsonl", "--shard", "2/2"], "is not K/N"),
        "JSONL in a .csv file": (["predict", run, squares, "--out", tmp_path / "p.csv"], "End its name in .jsonl"),
        "not a run": (["predict", tmp_path, image, "it"], "no model.yaml"),
        "drawing to nowhere": (
            ["predict", run, image, "it", "--draw", tmp_path / "none" / "a.png"],
            "cannot be written",
        ),
        "drawing in no format": (["predict", run, image, "it", "--draw", tmp_path / "a.xyz"], "cannot be written"),
        "box outside": (["evaluate", run, "--data", outside], "outside its image"),
        "box empty": (["evaluate", run, "--data", empty], "empty or inverted"),
        "unknown recipe": (["train", "scnes", "--out", tmp_path / "new"], "Did you mean 'scenes'"),
        "unknown key": (["train", "scenes", "train.epoch=1", "--out", tmp_path / "new"], "Did you mean 'train.epochs'"),
        "a demo over something else": (
            ["demo", "--quick", "--out", run],
            "holds no earlier demo. Choose another --out",
        ),
        "occupied folder": (["train", "scenes", "--out", run], "is not empty"),
        "unknown data set": (["evaluate", run, "--data", "scenez"], "Did you mean 'scenes'"),
        "data without a place": (["train", "flickr-mini", "--out", tmp_path / "new2"], "data.root=FOLDER"),
        "report on nothing": (["report", tmp_path / "void"], "void"),
        "score without a number": (
            ["predict", run, image, "it", "--min-score", "high"],
            "--min-score is high",
        ),
        "no stored threshold": (["predict", run, image, "it", "--min-score", "auto"], "`epmvg calibrate RUN`"),
        "calibrated on a test split": (["calibrate", run, "--split", "test"], "for reporting"),
        "no such hub": (["predict", "nobody/none", image, "it"], "nobody/none is no folder here"),
        "captions missing": (["teacher", "train", tmp_path / "c.jsonl", "--out", tmp_path / "t"], "c.jsonl"),
    }


def test_mistakes_are_one_sentence_and_status_2(
    run: Path, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(file for file in run.rglob("*"))
    for name, (arguments, words) in mistakes(run, squares, tmp_path).items():
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr().err.strip()
        assert ended.value.code == 2, f"{name}: {captured}"
        assert words in captured and len(captured.splitlines()) == 1, f"{name}: {captured}"
    assert sorted(file for file in run.rglob("*")) == before


@pytest.mark.parametrize("option", [["--to", "~/mine.json"], ["--to=~/mine.json"]])
def test_a_home_folder_is_expanded_in_outputs(
    squares: Path, tmp_path: Path, option: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    main_ok(["data", "convert", squares, *option])
    assert (tmp_path / "home" / "mine.json").is_file()


def test_mistakes_print_no_traceback(tmp_path: Path) -> None:
    done = epmvg_command("predict", tmp_path, tmp_path / "none.jpg", "it")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_command_line_has_at_most_86_options() -> None:
    def options(command: Any) -> int:
        own = [each for each in command.params if each.param_type_name == "option" and "completion" not in each.name]
        return len(own) + sum(map(options, getattr(command, "commands", {}).values()))

    assert options(get_command(app)) <= 86
