"""Bulk prediction: every row once, the same file unbroken, broken off, or shared by processes; what cannot be asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from processes import together

from epmvg import bulk
from epmvg.bulk import predict_many
from epmvg.models.factory import save
from epmvg.models.grounder import Grounder
from epmvg.predict import Predictor
from epmvg.types import InputError


@pytest.fixture
def run(tiny: Grounder, tmp_path: Path) -> Path:
    save(tiny, tmp_path / "run")
    return tmp_path / "run"


class KilledError(Exception):
    pass


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_rows_are_those_of_the_predictor_in_order(run: Path, squares: Path, tmp_path: Path) -> None:
    counts = predict_many(run, squares, tmp_path / "out.jsonl", images=3)
    asked, found = lines(squares), lines(tmp_path / "out.jsonl")
    assert counts == {"rows": 48, "errors": 0, "to": str(tmp_path / "out.jsonl")}
    assert [(row["id"], row["phrase"]) for row in found] == [(row["id"], row["phrase"]) for row in asked]
    ground = Predictor(run)
    for row in found[::5]:
        (alone,) = ground(str(row["image"]), str(row["phrase"]))
        assert row["box"] == pytest.approx(alone.box, abs=0.02) and row["score"] == pytest.approx(alone.score, abs=1e-3)
    assert not (tmp_path / "out.jsonl.part").exists()


def test_broken_off_and_started_again_it_writes_the_same_file(
    run: Path, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    predict_many(run, squares, whole, images=2)
    real = bulk._ask
    for stop in (2, 1, 2):  # batches answered before each end
        left = [stop]

        def dies(*arguments: object, left: list[int] = left) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise KilledError
            return real(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(bulk, "_ask", dies)
        with pytest.raises(KilledError):
            predict_many(run, squares, cut, images=2)
        assert not cut.exists()
        with (tmp_path / "cut.jsonl.part" / "0.jsonl").open("a") as torn:
            torn.write('{"rows": [{"image": "to')
    monkeypatch.setattr(bulk, "_ask", real)
    with pytest.raises(InputError, match=r"unfinished work of other images"):
        predict_many(run, squares, cut, images=5)
    predict_many(run, squares, cut, images=2)
    assert cut.read_bytes() == whole.read_bytes()


def test_processes_share_the_work(run: Path, squares: Path, tmp_path: Path) -> None:
    for count in (1, 2, 3):
        work = lambda name=f"{count}.jsonl": predict_many(run, squares, tmp_path / name, images=2)  # noqa: E731
        assert together(count, work) == [0] * count
    whole = (tmp_path / "1.jsonl").read_bytes()
    assert whole.count(b"\n") == 48
    assert whole == (tmp_path / "2.jsonl").read_bytes() == (tmp_path / "3.jsonl").read_bytes()


def test_a_folder_is_searched_and_what_cannot_be_read_is_said(run: Path, squares: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    (squares.parent / "0.png").rename(photos / "b.png")
    (squares.parent / "1.png").rename(photos / "more" / "a.PNG")
    (photos / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    (photos / "notes.txt").write_text("not a photo")
    many = [f"thing {number}" for number in range(70)]
    counts = predict_many(run, photos, tmp_path / "out.jsonl", phrases=[*many, " "])
    found = lines(tmp_path / "out.jsonl")
    assert counts["rows"] == 3 * 71 and counts["errors"] == 71 + 2
    assert [Path(str(row["image"])).name for row in found[::71]] == ["b.png", "a.PNG", "torn.jpg"]
    assert [row["phrase"] for row in found[:71]] == [*many, " "]
    assert all(("box" in row) != ("error" in row) for row in found)


def test_mistakes_are_one_sentence(run: Path, squares: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "out.jsonl").write_text("kept")
    for source, words in (
        (squares.parent, "give the phrases"),
        (run / "model.yaml", "neither"),
        ("empty.jsonl", "asks"),
    ):
        with pytest.raises(InputError, match=words):
            predict_many(run, tmp_path / source, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl.part").exists()
    assert (tmp_path / "out.jsonl").read_text() == "kept"
