"""What an evaluation names, where it writes, and what it takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import epmvg
from epmvg.config import DataSettings
from epmvg.evaluation import evaluate, stem_of
from epmvg.models.factory import save
from epmvg.models.grounder import Grounder
from epmvg.types import InputError


@pytest.fixture
def converted(tiny: Grounder, tmp_path: Path) -> Path:
    """A student as `epmvg convert` leaves it: without settings of a training."""
    save(tiny, tmp_path / "converted")
    return tmp_path / "converted"


def test_a_converted_student_is_evaluated_on_named_data(converted: Path, squares: Path) -> None:
    with pytest.raises(InputError, match="converted, not trained, and has no data of its own: name some with --data"):
        evaluate(converted)
    result = evaluate(converted, data=str(squares), split="val")
    assert result["n"] == 24 and (converted / result["rows"]).exists()


def test_files_of_one_name_and_splits_with_slashes_have_files_of_their_own(tiny: Grounder, tmp_path: Path) -> None:
    run = tmp_path / "run"
    save(tiny, run)
    own = tmp_path / "own.jsonl"
    files = [tmp_path / "a" / "test.jsonl", tmp_path / "b" / "test.jsonl"]
    for file in [own, *files]:
        file.parent.mkdir(exist_ok=True)
        file.write_text("")
    (run / "config.yaml").write_text(epmvg.Recipe.load("scenes", f"data.name={own}").dump())
    named: list[tuple[str, str | None]] = [(str(name), "val") for name in (own, "scenes", *files)]
    named += [(str(own), split) for split in ("val/x", "val-x", "../x", ".x", None)]
    stems = [stem_of(run, DataSettings(name=name), split) for name, split in named]
    assert len(set(stems)) == len(stems) and stems[:2] == ["own-val", "scenes-val"] and stems[-1] == "own-all"
    assert all(Path(stem).name == stem and not stem.startswith(".") for stem in stems)


def test_a_split_with_a_slash_is_written(converted: Path, squares: Path) -> None:
    rows = [json.loads(line) for line in squares.read_text().splitlines()]
    other = squares.with_name("other.jsonl")
    other.write_text("".join(json.dumps(row | {"split": "val/x"}) + "\n" for row in rows[:4]))
    result = evaluate(converted, data=str(other), split="val/x")
    assert result["split"] == "val/x" and len((converted / result["rows"]).read_text().splitlines()) == result["n"] == 4
