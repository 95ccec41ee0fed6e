"""Tests of the command line: user mistakes are one sentence and exit status 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.main import get_command

import epmvg
from epmvg.cli import app, main
from epmvg.inference import batch as bulk
from epmvg.models.factory import save
from epmvg.models.grounder import Grounder


def epmvg_command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "epmvg", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "200"} | environment,
    )


@pytest.fixture
def run(tiny: Grounder, tmp_path: Path, squares: Path) -> Path:
    folder = tmp_path / "run"
    save(tiny, folder)
    recipe = epmvg.Recipe.load("scenes", f"data.name={squares}", "model=tiny-resnet")
    (folder / "config.yaml").write_text(recipe.dump())
    return folder


def test_version_and_lists() -> None:
    assert epmvg_command("--version").stdout == f"epmvg {epmvg.__version__}\n"
    listed = json.loads(epmvg_command("list", "--json").stdout)
    assert set(listed) == {"models", "pretrained", "datasets", "recipes", "teachers"}
    assert {row["name"] for row in listed["models"]} == set(epmvg.list_models())
    assert "ViT-B-32" in {row["name"] for row in listed["teachers"]}


def test_predict_prints_boxes_inside_the_image_and_draws_them(run: Path, squares: Path, tmp_path: Path) -> None:
    photo = squares.parent / "0.png"
    drawn = tmp_path / "out.png"
    done = epmvg_command("predict", run, photo, "the red square", "blue", "--json", "--draw", drawn)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [one["phrase"] for one in answer["results"]] == ["the red square", "blue"]
    for one in answer["results"]:
        x0, y0, x1, y1 = one["box"]
        assert 0 <= x0 <= x1 <= answer["width"] == 80 and 0 <= y0 <= y1 <= answer["height"] == 60
    with Image.open(drawn) as picture:
        assert picture.size == (80, 60)


def test_heatmaps_and_attention_have_one_panel_per_phrase(run: Path, squares: Path, tmp_path: Path) -> None:
    """Maps have the size of the image and a maximum of 1."""
    photo, phrases = squares.parent / "0.png", ["the red square", "blue"]
    predictor = epmvg.Predictor(run)
    for maps in (predictor.maps("heatmap", photo, phrases), predictor.maps("attention", photo, phrases)):
        assert [values.shape for values in maps] == [(60, 80)] * 2
        assert all(values.min() >= 0 and values.max() == pytest.approx(1) for values in maps)
    main_ok(["predict", run, photo, *phrases, "--heatmap", tmp_path / "w.png", "--attention", tmp_path / "a.png"])
    for name in ("w.png", "a.png"):
        with Image.open(tmp_path / name) as strip:
            assert strip.height == 60 and strip.width > 2 * 80
    plain = epmvg.Predictor(epmvg.create_model("tiny-swin"))  # two strides, no heatmap
    assert plain.maps("attention", photo, "it")[0].shape == (60, 80)
    with pytest.raises(epmvg.InputError, match=r"model\.dense_head=false"):
        plain.maps("heatmap", photo, "it")


def test_phrases_are_printed_unchanged_on_one_line_each(
    run: Path, squares: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = "photograph " * 12 + "[/x]"
    main_ok(["predict", run, squares.parent / "0.png", "a dog\nand\ta cat", "[man] apple", wide])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 + 3
    for line, phrase in zip(printed[2:], ["a dog and a cat", "[man] apple", wide], strict=True):
        assert line.endswith(f"  {phrase}")


def test_many_images_from_patterns_and_files(
    run: Path, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, here = tmp_path / "found.jsonl", squares.parent
    words = ["predict", run, "-p", "the red square", "--phrase", "it", here / "1*.png", here / "0.png"]
    main_ok([*words, "--out", out, "--draw", tmp_path / "drawn", "--min-score", "0", "--json"])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    names = ["1.png", "10.png", "11.png", "0.png"]
    expected = [(name, phrase) for name in names for phrase in ("the red square", "it")]
    assert [(Path(row["image"]).name, row["phrase"]) for row in rows] == expected
    assert json.loads(capsys.readouterr().out)["rows"] == 8 and all(row["found"] for row in rows)
    assert sorted(file.name for file in (tmp_path / "drawn").iterdir()) == sorted(names)


def test_errors_and_skipped_files_of_many_images_are_named(
    run: Path, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    (folder / "notes.xyz").write_text("?")
    words = ["predict", run, folder, "it", "--out", tmp_path / "found.jsonl"]
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words)])
    said = capsys.readouterr()
    assert ended.value.code == 1  # no row could be predicted
    assert "torn.jpg" in said.err and "1 of 1 rows are errors" in said.err and "skipped: 1 .xyz" in said.err
    Image.open(squares.parent / "0.png").save(folder / "good.png")
    (tmp_path / "found.jsonl").unlink()
    main_ok(words)
    assert "2 rows (1 of them errors)" in capsys.readouterr().out


def test_ctrl_c_keeps_finished_rows_for_the_same_command(
    run: Path, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, left = epmvg.Predictor.predict_batch, [2]

    def interrupted(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*arguments)

    words = ["predict", run, squares, "--out", tmp_path / "found.jsonl"]
    monkeypatch.setattr(epmvg.Predictor, "predict_batch", interrupted)
    monkeypatch.setattr(bulk, "MAX_PHRASES", 8)
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words)])
    assert ended.value.code == 130
    said = capsys.readouterr().err.strip()
    assert "16 finished rows are kept in" in said and "run the same command again" in said
    monkeypatch.setattr(epmvg.Predictor, "predict_batch", real)
    main_ok(words)
    assert "48 rows (0 of them errors, 16 of them from before)" in capsys.readouterr().out


def test_the_bundled_models_training_data_is_noted_on_stderr(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main_ok(["predict", "default", squares.parent / "0.png", "it", "--json"])
    said = capsys.readouterr()
    assert json.loads(said.out)["results"] and said.err.count("drawn scenes, not photographs") == 1


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    main_ok(["predict", "--help"])
    assert 'epmvg predict default photo.jpg "the red apple"' in capsys.readouterr().out


def main_ok(arguments: list[object]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 0


def test_quiet_prints_results_only(squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [f"data.name={squares}", "model=tiny-resnet", "model.pretrained=false", "distill=null"]
    settings += [
        "data.augment=null",
        "train.cache_features=false",
        "train.epochs=1",
        "train.log_interval=1",
        "train.warmup_steps=0",
    ]
    said = {}
    for options in ([], ["--quiet"]):
        out = tmp_path / f"run{len(options)}"
        with pytest.raises(SystemExit) as ended:
            main([*options, "train", "scenes", *settings, "--out", str(out)])
        assert ended.value.code == 0
        said[len(options)] = capsys.readouterr().out.replace(str(out), "OUT")
    assert "Acc@0.5" in said[0] and said[1].startswith("The run is in OUT. Next:\n")
    assert said[0].endswith(said[1])


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
    photo = squares.parent / "0.png"
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
        "empty phrase": (["predict", run, photo, " "], "One of the phrases is empty"),
        "phrase of 500 words": (["predict", run, photo, "word " * 500], "500 words"),
        "many photos without a file to write": (["predict", run, squares], "Give --out"),
        "no phrase": (["predict", run, photo], "No phrase given"),
        "a folder without phrases": (
            ["predict", run, squares.parent, "--out", tmp_path / "p.jsonl"],
            "Give the phrases",
        ),
        "unknown device": (["evaluate", run, "--device", "banana"], "no device 'banana'"),
        "unknown device for perturbations": (
            ["evaluate", run, "--robustness", "--device", "banana"],
            "no device 'banana'",
        ),
        "a split without int8": (
            ["export", run, "--out", tmp_path / "e", "--split", "val"],
            "--split applies to --int8",
        ),
        "a report onto its run": (["report", run, "--out", run / "model.yaml"], "would overwrite the input"),
        "a report of one run twice": (["report", run, run], "given twice"),
        "images as phrases": (["predict", run, photo, squares.parent / "1.png", "it"], "--phrase"),
        "several images without a file to write": (["predict", run, photo, photo, "-p", "it"], "Give --out"),
        "a pattern without a file to write": (["predict", run, squares.parent / "*.png", "it"], "Give --out"),
        "drawing onto the input": (["predict", run, photo, "it", "--draw", photo], "would overwrite the input"),
        "map onto the input": (["predict", run, photo, "it", "--heatmap", photo], "would overwrite the input"),
        "score above 1": (["predict", run, photo, "it", "--min-score", "2"], "--min-score is 2"),
        "score that is not a number": (["predict", run, photo, "it", "--min-score", "nan"], "--min-score is nan"),
        "no such device": (["predict", run, photo, "it", "--device", "banana"], "no device 'banana'"),
        "a shard of an image": (["predict", run, photo, "it", "--shard", "0/2"], "--shard applies to many images"),
        "two outputs": (["predict", run, photo, "it", "--json", "--format", "coco"], "two outputs"),
        "a map of many": (
            ["predict", run, squares, "--out", tmp_path / "p.jsonl", "--heatmap", tmp_path / "w.png"],
            "--heatmap applies to one image",
        ),
        "no shard": (["predict", run, squares, "--out", tmp_path / "p.jsonl", "--shard", "2/2"], "is not K/N"),
        "lines in a table's file": (["predict", run, squares, "--out", tmp_path / "p.csv"], "End its name in .jsonl"),
        "not a run": (["predict", tmp_path, photo, "it"], "no model.yaml"),
        "drawing to nowhere": (
            ["predict", run, photo, "it", "--draw", tmp_path / "none" / "a.png"],
            "cannot be written",
        ),
        "drawing in no format": (["predict", run, photo, "it", "--draw", tmp_path / "a.xyz"], "cannot be written"),
        "box outside": (["evaluate", run, "--data", outside], "outside its image"),
        "box empty": (["evaluate", run, "--data", empty], "empty or inverted"),
        "unknown recipe": (["train", "scnes", "--out", tmp_path / "new"], "Did you mean 'scenes'"),
        "unknown key": (["train", "scenes", "train.epoch=1", "--out", tmp_path / "new"], "Did you mean 'train.epochs'"),
        "a demo over something else": (
            ["demo", "--quick", "--out", run],
            "holds no earlier demo: choose another --out",
        ),
        "occupied folder": (["train", "scenes", "--out", run], "is not empty"),
        "unknown data set": (["evaluate", run, "--data", "scenez"], "did you mean 'scenes'"),
        "data without a place": (["train", "flickr-mini", "--out", tmp_path / "new2"], "data.root=FOLDER"),
        "report on nothing": (["report", tmp_path / "void"], "void"),
        "score without a number": (
            ["predict", run, photo, "it", "--min-score", "high"],
            "--min-score is high",
        ),
        "no stored threshold": (["predict", run, photo, "it", "--min-score", "auto"], "`epmvg calibrate RUN`"),
        "calibrated on a test split": (["calibrate", run, "--split", "test"], "for reporting"),
        "no such hub": (["predict", "nobody/none", photo, "it"], "nobody/none is no folder here"),
        "captions missing": (["teacher", "train", tmp_path / "c.jsonl", "--out", tmp_path / "t"], "c.jsonl"),
    }


def test_mistakes_are_one_sentence_and_status_2(
    run: Path, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(file for file in run.rglob("*"))
    for name, (arguments, words) in mistakes(run, squares, tmp_path).items():
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr().err.strip()
        assert ended.value.code == 2, f"{name}: {said}"
        assert words in said and len(said.splitlines()) == 1, f"{name}: {said}"
    assert sorted(file for file in run.rglob("*")) == before


def test_mistakes_print_no_traceback(tmp_path: Path) -> None:
    done = epmvg_command("predict", tmp_path, tmp_path / "none.jpg", "it")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_command_line_has_at_most_80_options() -> None:
    def options(command: Any) -> int:
        own = [each for each in command.params if each.param_type_name == "option" and "completion" not in each.name]
        return len(own) + sum(map(options, getattr(command, "commands", {}).values()))

    assert options(get_command(app)) <= 80
