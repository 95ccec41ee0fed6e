"""The report: metrics that can be checked by hand, on a page that is self-contained."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image, ImageDraw

from epmvg.core.types import InputError
from epmvg.report import write_report

TARGET = [40.0, 30.0, 100.0, 90.0]


def make_rows(ious: Sequence[float], per_image: int = 2) -> list[dict[str, Any]]:
    """Rows with these IoUs, `per_image` phrases an image, boxes right or far off."""
    return [
        {
            "image": f"images/{number // per_image}.jpg",
            "phrase": f"the thing number {number}" + " indeed" * (number % 5),
            "box": TARGET if iou >= 0.5 else [110.0, 80.0, 150.0, 115.0],
            "target": TARGET,
            "iou": iou,
            "score": 0.5,
            "id": f"row-{number}",
            "kind": ("color", "place", "relation")[number % 3],
        }
        for number, iou in enumerate(ious)
    ]


def write_jsonl(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_run(folder: Path, rows: Sequence[dict[str, Any]], *, teacher: str | None = None, images: bool = True) -> Path:
    """A run's folder as training and evaluation leave it, with images."""
    folder.mkdir(parents=True)
    distill = {"teacher": teacher, "image": 1.5} if teacher else None
    config = {"name": "fake", "model": {"name": "mini"}, "distill": distill, "train": {"lr": 1e-4, "epochs": 2}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    metrics: list[dict[str, Any]] = []
    for step in range(1, 31):
        at = {"step": step, "phrases": 128 * step, "seconds": 7.5 * step}
        terms = {"l1": 2 / step, "giou": 1 / step, "odd_term": 0.1} | ({"image": 1 / step} if teacher else {})
        metrics.append({"event": "step", "loss": terms | {"total": sum(terms.values())}, "lr": 1e-4} | at)
        if step % 10 == 0:
            metrics.append({"event": "evaluate", "data": "fake", "split": "val", "acc50": step / 40, "n": 9} | at)
    write_jsonl(folder / "metrics.jsonl", metrics)
    write_jsonl(folder / "predictions-fake-test.jsonl", rows)
    if images:
        (folder / "images").mkdir()
        for name in {row["image"] for row in rows}:
            image = Image.new("RGB", (160, 120), (90, 120, 140))
            ImageDraw.Draw(image).rectangle((40, 30, 100, 90), fill=(200, 70, 60))
            image.save(folder / name)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """A plain run that finds half the phrases, and a distilled one that finds three quarters."""
    plain = make_rows([0.8, 0.1, 0.5, 0.49] * 6)
    distilled = make_rows([0.9, 0.7, 0.6, 0.2] * 6)
    return [make_run(tmp_path / "plain", plain), make_run(tmp_path / "distilled", distilled, teacher="ViT-B-32")]


def table_text(page: str) -> str:
    """The page's words without styles and tags, spaces collapsed."""
    body = re.sub(r"<style>.*?</style>|<svg.*?</svg>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def test_page_shows_the_metrics(runs: list[Path], tmp_path: Path) -> None:
    page = write_report(runs, tmp_path / "report.html").read_text(encoding="utf-8")
    text = table_text(page)
    assert "distilled: Acc@0.5 75.0% on 24 phrases of fake test" in text
    assert "50.0%" in text and "+25.0" in text
    assert f"{100 * (0.9 + 0.7 + 0.6 + 0.2) / 4:.1f}%" in text  # mean IoU
    assert "ViT-B-32" in text and "distill.teacher" in text
    assert "train.lr" not in text.split("Settings that differ")[1].split("All settings")[0]
    assert "Correct: distilled 6 phrases" in text and "Correct: none 6 phrases" in text


def test_page_is_self_contained_and_the_same_twice(runs: list[Path], tmp_path: Path) -> None:
    first = write_report(runs, tmp_path / "a.html", gallery=3).read_bytes()
    assert first == write_report(runs, tmp_path / "b.html", gallery=3).read_bytes()
    page = first.decode()
    assert "://" not in page
    assert not re.search(r"<(script|link|iframe|object)\b|@import|url\((?!#)", page)
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert addresses and all(re.match("data:image/(jpeg|svg[+]xml);base64,", address) for address in addresses)
    assert page.count("<image ") == 3 + 3 * 3  # most improved; correct in distilled, in both and in none
    assert not list(tmp_path.glob(".*"))


def test_the_most_improved_or_the_given_phrases_are_compared(runs: list[Path], tmp_path: Path) -> None:
    page = write_report(runs, tmp_path / "report.html").read_text(encoding="utf-8")
    part = page[page.index("Where distilled improves most on plain") : page.index("Correct: distilled")]
    shown = [int(number) for number in re.findall(r'aria-label="the thing number (\d+)', part)]
    improved = [number for number in range(24) if number % 4 == 1]  # 0.1 -> 0.7; others gain 0.1 or lose
    assert len(shown) == 4 == part.count("<image ") and set(shown) <= set(improved)

    chosen = write_report(runs, tmp_path / "chosen.html", phrases=["The thing  NUMBER 5"], gallery=0)
    assert re.findall(r'aria-label="(the thing number 5)[ "]', chosen.read_text("utf-8")) == ["the thing number 5"]
    assert "Correct: distilled" not in chosen.read_text("utf-8")
    with pytest.raises(InputError, match="'a unicorn'"):
        write_report(runs, tmp_path / "none.html", phrases=["a unicorn"])
    assert not (tmp_path / "none.html").exists()


def test_words_from_outside_are_escaped(tmp_path: Path) -> None:
    rows = [
        row | {"phrase": "<script>alert(1)</script>", "kind": f"<em>{i}"} for i, row in enumerate(make_rows([0.9, 0.1]))
    ]
    run = make_run(tmp_path / "run<i>", rows, teacher="$x <u>")
    page = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert not re.search(r"<(script|em|i>|u>)", page.replace('<i class="', ""))


def test_images_that_are_missing_or_broken_are_marked(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", make_rows([0.9, 0.1, 0.9, 0.1]))
    (run / "images" / "0.jpg").unlink()
    (run / "images" / "1.jpg").write_bytes(b"\xff\xd8 not an image")
    page = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<image " not in page
    assert page.count("cannot be opened: ") == 4


def test_images_are_found_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", make_rows([0.9, 0.1]))
    (run / "images").rename(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    assert write_report([run], tmp_path / "report.html").read_text(encoding="utf-8").count("<image ") == 2


def test_images_are_turned_by_their_exif_orientation(tmp_path: Path) -> None:
    """The page's pixels are those of the upright image."""
    run = make_run(tmp_path / "run", make_rows([0.9]))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (1600, 1200)).save(run / "images" / "0.jpg", exif=exif)
    page = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'viewBox="0 0 1200 1600"' in page


def test_torn_last_line_and_unknown_rows_are_tolerated(runs: list[Path], tmp_path: Path) -> None:
    with (runs[0] / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"event": "novel"}\n{"event": "step", "loss": {"total": NaN}, "phrases": 1}\n{"event": "st')
    assert write_report(runs, tmp_path / "report.html").stat().st_size > 10_000


def test_one_run_many_runs_and_runs_without_metrics(runs: list[Path], tmp_path: Path) -> None:
    third = make_run(tmp_path / "deep" / "plain", make_rows([0.6] * 24))
    (third / "metrics.jsonl").unlink()
    one = table_text(write_report(runs[:1], tmp_path / "one.html").read_text(encoding="utf-8"))
    assert "All correct 12 phrases" in one
    assert "Difference" not in one
    many = table_text(write_report([*runs, third], tmp_path / "many.html", gallery=1).read_text(encoding="utf-8"))
    assert "deep/plain" in many
    assert "Correct: distilled, " in many


def test_unusable_input_is_one_sentence(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    with pytest.raises(InputError, match="at least one run"):
        write_report([], out)
    with pytest.raises(InputError, match=r"no folder .*nowhere, and no results"):
        write_report([tmp_path / "nowhere"], out)
    (runs[0] / "predictions-fake-test.jsonl").write_text("")
    with pytest.raises(InputError, match="holds no predictions"):
        write_report(runs, out)
    write_jsonl(runs[0] / "predictions-fake-test.jsonl", [{"image": "a", "phrase": "b", "box": [0, 0, 1]}])
    with pytest.raises(InputError, match="line 1 is not a prediction"):
        write_report(runs, out)
    with pytest.raises(InputError, match="is a folder"):
        write_report(runs[1:], tmp_path)
    assert not out.exists()


def test_stays_small_with_photos_full_of_detail(tmp_path: Path) -> None:
    rows = make_rows([0.9, 0.1] * 24, per_image=1)
    other = make_rows([0.9, 0.1, 0.1, 0.9] * 12, per_image=1)
    runs = [make_run(tmp_path / "a", rows), make_run(tmp_path / "b", other, images=False)]
    for number in range(48):
        Image.effect_noise((640, 480), 40 + number).convert("RGB").save(runs[0] / "images" / f"{number}.jpg")
    assert write_report(runs, tmp_path / "report.html").stat().st_size < 3_000_000
