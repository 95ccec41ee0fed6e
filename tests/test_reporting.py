"""The report: figures that can be checked by hand, intervals that behave, a page that needs nothing and no one."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from epmvg.core.types import InputError
from epmvg.evaluation.slices import GROUPINGS
from epmvg.evaluation.statistics import difference
from epmvg.report import bootstrap, compare, write_report

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
            "kind": ("colour", "place", "relation")[number % 3],
        }
        for number, iou in enumerate(ious)
    ]


def write_jsonl(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_run(folder: Path, rows: Sequence[dict[str, Any]], *, teacher: str | None = None, photos: bool = True) -> Path:
    """A run's folder as training and evaluation leave it, with drawn photos."""
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
    if photos:
        (folder / "images").mkdir()
        for name in {row["image"] for row in rows}:
            picture = Image.new("RGB", (160, 120), (90, 120, 140))
            ImageDraw.Draw(picture).rectangle((40, 30, 100, 90), fill=(200, 70, 60))
            picture.save(folder / name)
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


# Statistics


def test_difference_is_counted_by_hand() -> None:
    a, b = make_rows([0.9, 0.1, 0.5, 0.3]), make_rows([0.9, 0.6, 0.4999, 0.7])  # hits 1,0,1,0 and 1,1,0,1
    difference = compare(a, b)
    assert difference.points == pytest.approx(25.0)
    assert (difference.images, difference.phrases) == (2, 4)
    assert compare(b, a).points == pytest.approx(-25.0)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.integers(1, 4))
def test_interval_lies_in_the_data_and_identical_runs_differ_by_nothing(ious: list[float], per_image: int) -> None:
    rows = make_rows(ious, per_image)
    low, high = bootstrap(rows, score=lambda row: row["iou"])
    assert min(ious) - 1e-9 <= low <= high <= max(ious) + 1e-9
    same = compare(rows, rows)
    assert (same.points, same.low, same.high, same.clear) == (0.0, 0.0, 0.0, False)


def test_a_difference_on_three_images_is_not_significant() -> None:
    worse, better = make_rows([0.1] * 3, per_image=1), make_rows([0.9] * 3, per_image=1)
    difference = compare(worse, better)
    assert difference.points == 100 and difference.p > 0.2 and not difference.clear
    many = compare(make_rows([0.1] * 30, per_image=1), make_rows([0.9] * 30, per_image=1))
    assert many.clear and many.p <= 0.05


def test_interval_contains_the_point_and_has_the_textbook_width() -> None:
    dice = random.Random(5)
    rows = make_rows([float(dice.random() < 0.6) for _ in range(900)], per_image=1)
    share = sum(row["iou"] for row in rows) / 900
    low, high = bootstrap(rows)
    assert low < share < high
    assert high - low == pytest.approx(2 * 1.96 * (share * (1 - share) / 900) ** 0.5, rel=0.1)


def test_phrases_of_one_image_count_as_one_draw() -> None:
    """Ten phrases that stand or fall together tell no more than one does."""
    hits = [float(number % 3 == 0) for number in range(60)]
    alone = make_rows(hits, per_image=1)
    together = make_rows([hit for hit in hits for _ in range(10)], per_image=10)
    assert bootstrap(together) == pytest.approx(bootstrap(alone), abs=0.02)


def test_rows_meet_whatever_their_order_and_only_where_both_answered() -> None:
    a, b = make_rows([0.9, 0.1, 0.5, 0.3] * 5), make_rows([0.9, 0.6, 0.4, 0.7] * 5)
    whole = compare(a, b)
    assert compare(a, random.Random(1).sample(b, len(b))) == whole
    part = compare(a, b[:4])
    assert part.phrases == 4
    assert part.points == pytest.approx(25.0)
    with pytest.raises(InputError, match="no phrase in common"):
        compare(a[:2], b[2:])


def test_a_question_asked_twice_without_an_id_is_two_questions() -> None:
    rows = [row | {"id": "", "phrase": "a dog", "image": "a.jpg"} for row in make_rows([0.9, 0.1])]
    assert compare(rows, rows).phrases == 2


def test_a_difference_has_the_interval_of_independent_images() -> None:
    """The phrases of an image rise or fall together here, so the textbook's interval counts images, not phrases."""
    dice = random.Random(7)
    before, after = [], []
    for _ in range(400):
        a, b = float(dice.random() < 0.5), float(dice.random() < 0.6)
        before += [a] * 4
        after += [b] * 4
    difference = compare(make_rows(before, 4), make_rows(after, 4))
    gains = [100 * (b - a) for a, b in zip(before[::4], after[::4], strict=True)]
    mean = sum(gains) / 400
    error = (sum((gain - mean) ** 2 for gain in gains) / 399 / 400) ** 0.5
    assert difference.points == pytest.approx(mean)
    assert difference.low == pytest.approx(mean - 1.96 * error, abs=0.2 * error)
    assert difference.high == pytest.approx(mean + 1.96 * error, abs=0.2 * error)


def test_a_chance_difference_is_rarely_clear_and_images_turn_together() -> None:
    """Where nothing differs p may be anything in 0..1 alike; copies of an image's phrases tell nothing more."""
    dice = random.Random(8)
    chances = []
    for _ in range(16):
        gains = [dice.gauss(0, 1) for _ in range(40)]
        alone = difference([str(i) for i in range(40)], gains)
        copied = difference([str(i // 5) for i in range(200)], [gain for gain in gains for _ in range(5)])
        assert copied.p == pytest.approx(alone.p, abs=0.02)
        chances.append(alone.p)
    assert min(chances) > 0.001 and sum(chances) / 16 == pytest.approx(0.5, abs=0.2)
    by_hand = difference(["a", "b", "c"], [1.0, 1.0, 1.0])  # 2 of 8 sign changes reach as far
    assert by_hand.p == pytest.approx(0.25, abs=0.02)


def test_intervals_are_drawn_from_their_seed() -> None:
    dice = random.Random(3)
    a, b = (make_rows([dice.random() for _ in range(200)]) for _ in range(2))
    assert compare(a, b, seed=1) == compare(a, b, seed=1)
    first, again, other = (bootstrap(a, score=lambda row: row["iou"], seed=seed) for seed in (1, 1, 2))
    assert first == again != other


# Slices


@pytest.mark.parametrize(
    ("title", "phrase", "name"),
    [
        ("Side words", "man on the LEFT", "with"),
        ("Side words", "rightmost cup", "with"),
        ("Side words", "a bright laptop on the desktop", "without"),
        ("Colour words", "the grey-haired man", "with"),
        ("Colour words", "a bored man", "without"),
        ("Relation words", "the dog next to her", "with"),
        ("Relation words", "woman holding a cup", "with"),
        ("Relation words", "a dog", "without"),
        ("Part of the data", "a dog", "refcoco testA"),
        ("Type of thing", "a dog", "animals"),
        ("Length of the phrase", "a dog", "1 or 2 words"),
        ("Size of the target", "a dog", "medium (< 96² px)"),
    ],
)
def test_a_row_is_in_the_slices_it_names(title: str, phrase: str, name: str) -> None:
    (grouping,) = [each for each in GROUPINGS if each.title == title]
    row = {"phrase": phrase, "target": TARGET, "dataset": "refcoco", "split": "testA", "types": ["animals"]}
    assert list(grouping.names_of(row)) == [name]


# The page


def test_page_shows_the_figures(runs: list[Path], tmp_path: Path) -> None:
    page = write_report(runs, tmp_path / "report.html").read_text(encoding="utf-8")
    text = table_text(page)
    assert "distilled finds 75.0% of the 24 phrases of fake test" in text
    assert "50.0%" in text
    assert "+25.0" in text
    assert f"{100 * (0.9 + 0.7 + 0.6 + 0.2) / 4:.1f}%" in text  # mean IoU
    assert "ViT-B-32" in text
    assert "distill.teacher" in text
    assert "train.lr" not in text.split("Settings that differ")[1].split("All settings")[0]
    assert "Only distilled is right 6 phrases" in text
    assert "Neither is right 6 phrases" in text


def test_page_needs_nothing_and_is_the_same_twice(runs: list[Path], tmp_path: Path) -> None:
    first = write_report(runs, tmp_path / "a.html", gallery=3).read_bytes()
    assert first == write_report(runs, tmp_path / "b.html", gallery=3).read_bytes()
    page = first.decode()
    assert "://" not in page
    assert not re.search(r"<(script|link|iframe|object)\b|@import|url\((?!#)", page)
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert addresses
    assert all(address.startswith(("data:image/jpeg;base64,", "#")) for address in addresses)
    assert page.count("<image ") == 3 + 3 * 3  # most improved; only-distilled, both and neither (only-plain has none)
    assert not list(tmp_path.glob(".*"))


def test_runs_stand_side_by_side_for_the_most_improved_or_the_chosen(runs: list[Path], tmp_path: Path) -> None:
    page = write_report(runs, tmp_path / "report.html").read_text(encoding="utf-8")
    part = page[page.index("Where distilled improves most on plain") : page.index("drawn at random")]
    shown = re.findall(r'aria-label="the thing number (\d+)[^"]*: (\w+)"', part)
    improved = [number for number in range(24) if number % 4 == 1]  # 0.1 -> 0.7; others gain 0.1 or lose
    assert [name for _, name in shown] == ["plain", "distilled"] * 4
    assert {int(number) for number, _ in shown} <= set(improved)
    assert part.count("<image ") == 4 == part.count("<use ")  # a photo travels once
    assert part.count('class="truth whole"') == 8

    chosen = write_report(runs, tmp_path / "chosen.html", phrases=["The thing  NUMBER 5"], gallery=0).read_text(
        encoding="utf-8"
    )
    assert re.findall(r'aria-label="(the thing number 5): (\w+)"', chosen) == [
        ("the thing number 5", "plain"),
        ("the thing number 5", "distilled"),
    ]
    assert "drawn at random" not in chosen
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


def test_photos_that_are_missing_or_broken_leave_a_note(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", make_rows([0.9, 0.1, 0.9, 0.1]))
    (run / "images" / "0.jpg").unlink()
    (run / "images" / "1.jpg").write_bytes(b"\xff\xd8 not a photo")
    page = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<image " not in page
    assert "4 photos could not be opened" in page


def test_photos_are_found_from_where_the_run_was_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", make_rows([0.9, 0.1]))
    (run / "images").rename(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    assert write_report([run], tmp_path / "report.html").read_text(encoding="utf-8").count("<image ") == 2


def test_upright_photos_keep_their_pixels(tmp_path: Path) -> None:
    """A photo on its side is turned, and the page's pixels are those of the upright photo."""
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
    assert "Hits 12 phrases" in one
    assert "Against" not in one
    many = table_text(write_report([*runs, third], tmp_path / "many.html", gallery=1).read_text(encoding="utf-8"))
    assert "deep/plain" in many
    assert "The runs disagree 12 phrases" in many


def test_unusable_input_is_one_sentence(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    with pytest.raises(InputError, match="at least one run"):
        write_report([], out)
    with pytest.raises(InputError, match="nowhere is not a folder"):
        write_report([tmp_path / "nowhere"], out)
    (runs[0] / "predictions-fake-test.jsonl").write_text("")
    with pytest.raises(InputError, match="holds no predictions"):
        write_report(runs, out)
    write_jsonl(runs[0] / "predictions-fake-test.jsonl", [{"image": "a", "phrase": "b", "box": [0, 0, 1]}])
    with pytest.raises(InputError, match=r"line 1: 'box' is missing or not four numbers"):
        write_report(runs, out)
    with pytest.raises(InputError, match="is a folder"):
        write_report(runs[1:], tmp_path)
    assert not out.exists()


def test_stays_small_with_photos_full_of_detail(tmp_path: Path) -> None:
    rows = make_rows([0.9, 0.1] * 24, per_image=1)
    other = make_rows([0.9, 0.1, 0.1, 0.9] * 12, per_image=1)
    runs = [make_run(tmp_path / "a", rows), make_run(tmp_path / "b", other, photos=False)]
    for number in range(48):
        photo = Image.effect_noise((640, 480), 40 + number).convert("RGB")
        photo.resize((1280, 960)).save(runs[0] / "images" / f"{number}.jpg")
    assert write_report(runs, tmp_path / "report.html").stat().st_size < 3_000_000
