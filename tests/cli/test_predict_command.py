"""Tests of `epmvg predict`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import epmvg_command, main_ok
from PIL import Image

import epmvg
from epmvg.cli import main
from epmvg.inference import batch as bulk


def test_predict_prints_boxes_inside_the_image_and_draws_them(run: Path, squares: Path, tmp_path: Path) -> None:
    image = squares.parent / "0.png"
    drawn = tmp_path / "out.png"
    done = epmvg_command("predict", run, image, "the red square", "blue", "--json", "--draw", drawn)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [each["phrase"] for each in result["results"]] == ["the red square", "blue"]
    for each in result["results"]:
        x0, y0, x1, y1 = each["box"]
        assert 0 <= x0 <= x1 <= result["width"] == 80 and 0 <= y0 <= y1 <= result["height"] == 60
    with Image.open(drawn) as opened:
        assert opened.size == (80, 60)


def test_heatmaps_have_one_panel_per_phrase(run: Path, squares: Path, tmp_path: Path) -> None:
    """Maps have the size of the image and a maximum of 1."""
    image, phrases = squares.parent / "0.png", ["the red square", "blue"]
    predictor = epmvg.Predictor(run)
    for maps in (predictor.maps("heatmap", image, phrases), predictor.maps("attention", image, phrases)):
        assert [values.shape for values in maps] == [(60, 80)] * 2
        assert all(values.min() >= 0 and values.max() == pytest.approx(1) for values in maps)
    main_ok(["predict", run, image, *phrases, "--heatmap", tmp_path / "w.png"])
    with Image.open(tmp_path / "w.png") as strip:
        assert strip.height == 60 and strip.width > 2 * 80
    plain = epmvg.Predictor(epmvg.create_model("tiny-swin"))  # two strides, no heatmap
    assert plain.maps("attention", image, "it")[0].shape == (60, 80)
    with pytest.raises(epmvg.InputError, match=r"model\.dense_head=true"):
        plain.maps("heatmap", image, "it")


def test_failing_drawings_lose_no_prediction_and_leave_no_half(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(image: Image.Image, file: Path) -> None:
        raise epmvg.InputError(f"{file} could not be written")

    epmvg.save(epmvg.create_model("tiny-resnet"), tmp_path / "paper")
    drawings = ["--draw", tmp_path / "d.png", "--heatmap", tmp_path / "h.png"]
    arguments = [str(word) for word in ["predict", tmp_path / "paper", squares.parent / "0.png", "it", *drawings]]
    with pytest.raises(SystemExit):
        main(arguments)
    assert "has no heatmap" in capsys.readouterr().err and not (tmp_path / "d.png").exists()
    monkeypatch.setattr("epmvg.inference.draw.save_image", full)
    with pytest.raises(SystemExit):
        main(arguments[:-2])
    printed = capsys.readouterr()
    assert "d.png could not be written" in printed.err and printed.out.splitlines()[-1].endswith("  it")


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
    captured = capsys.readouterr()
    assert ended.value.code == 1  # no row could be predicted
    assert (
        "torn.jpg" in captured.err and "1 of 1 predictions failed" in captured.err and "skipped: 1 .xyz" in captured.err
    )
    Image.open(squares.parent / "0.png").save(folder / "good.png")
    (tmp_path / "found.jsonl").unlink()
    main_ok(words)
    assert "2 rows (1 of them errors)" in capsys.readouterr().out


def test_ctrl_c_keeps_finished_rows_for_the_same_command(
    run: Path, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, left = epmvg.Predictor.predict_batch, [2]

    def interrupted(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    words = ["predict", run, squares, "--out", tmp_path / "found.jsonl"]
    monkeypatch.setattr(epmvg.Predictor, "predict_batch", interrupted)
    monkeypatch.setattr(bulk, "PHRASES_PER_PASS", 8)
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words)])
    assert ended.value.code == 130
    captured = capsys.readouterr().err.strip()
    assert "16 finished rows are kept in" in captured and "run the same command again" in captured
    monkeypatch.setattr(epmvg.Predictor, "predict_batch", real)
    main_ok(words)
    assert "48 rows (0 of them errors, 16 of them from before)" in capsys.readouterr().out


def test_what_a_model_was_trained_on_is_noted_on_stderr(
    run: Path, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noted = Path(shutil.copytree(run, tmp_path / "noted"))
    (noted / "README.md").write_text("---\ndomain: squares\n---\n")
    for model, lines in ((noted, 1), ("default", 0)):
        main_ok(["predict", model, squares.parent / "0.png", "it", "--json"])
        captured = capsys.readouterr()
        assert json.loads(captured.out)["results"] and captured.err.count(" was trained on squares.") == lines


def test_label_writes_a_checked_data_set_and_says_what_was_left_out(
    run: Path, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"{number}.png,the red square" for number in range(12)]
    (tmp_path / "phrases.csv").write_text("image,phrase\n" + "\n".join([*lines, "none.png,it"]) + "\n")
    words = ["label", squares.parent, "--phrases", tmp_path / "phrases.csv", "--with", run, "--min-score", "0"]
    main_ok([*words, "--out", tmp_path / "my.jsonl"])
    printed = capsys.readouterr()
    assert "12 of 13 boxes in 12 images. Dropped: 1 whose image or phrase cannot be used." in printed.out
    assert "12 phrases of 12 images" in printed.out and "none.png does not exist" in printed.err
    (tmp_path / "sub").mkdir()
    main_ok([*words, "--out", tmp_path / "sub" / "my.jsonl"])
    assert f"read it with --root {squares.parent}" in capsys.readouterr().out
    done = epmvg_command("predict", run, squares.parent / "0.png", "it", "--format", "yolo")
    assert done.returncode == 2 and "Give its name with --out" in done.stderr
