"""What an evaluation accepts, counts and writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast, get_args

import accelerate
import pytest
import torch

import epmvg
from epmvg.config.settings import DataSettings
from epmvg.core.geometry import Clip
from epmvg.core.types import InputError
from epmvg.evaluation.evaluate import evaluate
from epmvg.evaluation.external import score
from epmvg.evaluation.samples import results_stem
from epmvg.models.factory import create_model, load, save
from epmvg.models.grounder import Grounder
from epmvg.report.runs import read_runs
from epmvg.training.data import make_loaders


@pytest.fixture
def converted(tiny: Grounder, tmp_path: Path) -> Path:
    """A student as `epmvg convert` leaves it: without settings of a training."""
    save(tiny, tmp_path / "converted")
    return tmp_path / "converted"


def test_a_converted_student_is_evaluated_on_named_data(converted: Path, squares: Path) -> None:
    with pytest.raises(InputError, match="has no data of its own"):
        evaluate(converted)
    result = evaluate(converted, data=str(squares), split="val")
    assert result["n"] == 24 and (converted / result["predictions"]).exists()


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
    stems = [results_stem(run, DataSettings(name=name), split) for name, split in named]
    assert len(set(stems)) == len(stems) and stems[:2] == ["own-val", "scenes-val"] and stems[-1] == "own-all"
    assert all(Path(stem).name == stem and not stem.startswith(".") for stem in stems)


def test_boxes_may_be_clipped_to_the_canvas(squares: Path, tmp_path: Path) -> None:
    """In files of their own; `score` and `report` never compare them with boxes that were clipped to the image."""
    model = create_model("tiny-resnet")
    torch.nn.init.constant_(cast(torch.nn.Linear, model.box_head.layers[-1]).bias, 4.0)
    save(model, tmp_path / "run")
    source: dict[str, Any] = {"data": str(squares), "split": "val"}
    evaluate(tmp_path / "run", **source, flip=True)
    with pytest.raises(InputError, match="or flip"):
        evaluate(tmp_path / "run", **source, flip=True, clip="canvas")
    image, canvas = (evaluate(tmp_path / "run", **source, clip=clip) for clip in get_args(Clip))
    assert (image["clip"], canvas["clip"]) == ("image", "canvas") and "as TransVG evaluates" in canvas["protocol"]
    files = [tmp_path / "run" / result["predictions"] for result in (image, canvas)]
    rows = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    assert [{row["clip"] for row in part} for part in rows] == [{"image"}, {"canvas"}]
    assert all(row["box"][3] == 60 for row in rows[0]) and all(row["box"][3] > 60 for row in rows[1])
    (run,) = read_runs([tmp_path / "run"])
    assert set(run.predictions) == {"annotations val", "annotations val-canvas", "annotations val-flip"}

    alone = score(files[1], **source, out=tmp_path / "again.jsonl")
    assert (alone["protocol"], alone["miou"], alone["warnings"]) == (canvas["protocol"], canvas["miou"], [])
    mixed = score(files[1], **source, against=files[0])
    assert (mixed["protocol"], mixed["miou"]) == (image["protocol"], image["miou"])
    assert mixed["against"]["metrics"]["miou"]["points"] == 0 and "clipped to the canvas" in mixed["warnings"][0]
    assert score(files[0], **source, against=files[1])["against"]["warnings"] == mixed["warnings"]
    both = score(tmp_path / "again.jsonl", **source, against=files[1])
    assert (both["protocol"], both["miou"]) == (canvas["protocol"], canvas["miou"])


def test_a_split_with_a_slash_is_written(converted: Path, squares: Path) -> None:
    rows = [json.loads(line) for line in squares.read_text().splitlines()]
    other = squares.with_name("other.jsonl")
    other.write_text("".join(json.dumps(row | {"split": "val/x"}) + "\n" for row in rows[:4]))
    result = evaluate(converted, data=str(other), split="val/x")
    assert (
        result["split"] == "val/x"
        and len((converted / result["predictions"]).read_text().splitlines()) == result["n"] == 4
    )


def test_phrases_that_are_not_read_as_written_are_counted(converted: Path, squares: Path) -> None:
    """By an evaluation, which gives those that were cut a slice of their own, and at the start of a training."""
    rows = [json.loads(line) for line in squares.read_text().splitlines()]
    for row, words in zip(rows, (30 * "very " + "long", "\N{DOG FACE}", 18 * "word "), strict=False):
        row["phrase"] = words
    squares.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = evaluate(converted, data=str(squares), split="train")
    assert (result["truncated"], result["unknown"]) == (1, 1)
    assert result["slices"]["Truncation"]["truncated"]["n"] == 1
    marked = [json.loads(line) for line in (converted / result["predictions"]).read_text().splitlines()]
    assert [row["phrase"][:4] for row in marked if row.get("truncated")] == ["very"]
    assert [row["phrase"] for row in marked if row.get("unknown")] == ["\N{DOG FACE}"]
    reported: list[dict[str, Any]] = []
    recipe = epmvg.Recipe.load("scenes", f"data.name={squares}", "model.name=tiny-resnet", "train.cache_features=false")
    make_loaders(recipe, load(converted), accelerate.PartialState(), reported.append)
    texts = [row["text"] for row in reported if row["event"] == "message"]
    assert any("1 of 24 training phrases are longer than 20 word pieces" in text for text in texts)
    assert any("1 of 24 training phrases contain no word" in text for text in texts)
