"""Robustness: perturbations are pure, swaps can be undone, boxes follow the image, and every phrase is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import epmvg
from epmvg.cli import main
from epmvg.core.types import Sample
from epmvg.data.synthetic.sprite_library import CLOSE_COLORS
from epmvg.evaluation.perturbations import IMAGE_PERTURBATIONS, PHRASE_PERTURBATIONS, generator, swap_colors
from epmvg.evaluation.robustness import CLEAN, measure_robustness, query_image
from epmvg.inference.runtimes.protocol import RuntimeOutput
from epmvg.models.factory import save
from epmvg.models.grounder import Grounder

PHRASES = (
    "the Red cat to the LEFT of the small, gray dog",
    "a bottle in front of a bright window, above the shelf",
    "a café's straße",
    "it",
)


def random_image(size: tuple[int, int] = (90, 60)) -> Image.Image:
    coarse = np.random.default_rng(3).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def made(name: str, phrase: str, seed: int = 0) -> str | None:
    return PHRASE_PERTURBATIONS[name](phrase, generator(seed, name, phrase))


def test_a_perturbation_depends_on_its_arguments_alone() -> None:
    for name in PHRASE_PERTURBATIONS:
        assert [made(name, phrase) for phrase in PHRASES] == [made(name, phrase) for phrase in PHRASES]
    seeds = {made("typo", PHRASES[0], seed) for seed in range(20)}
    assert len(seeds) > 5
    for name, change in IMAGE_PERTURBATIONS.items():
        one, other = (change(random_image(), generator(1, name, "a")) for _ in range(2))
        assert one is not None and np.array_equal(np.asarray(one), np.asarray(other)), name
        assert not np.array_equal(np.asarray(one), np.asarray(random_image())), name


@pytest.mark.parametrize("phrase", PHRASES)
def test_swapping_sides_twice_changes_nothing(phrase: str) -> None:
    other = made("sides swapped", phrase)
    assert other is not None and made("sides swapped", other) == phrase
    assert "bright" in other or "bright" not in phrase


def test_a_swapped_color_is_plainly_another() -> None:
    for seed in range(50):
        words = swap_colors("the Red cat and a gray dog", np.random.default_rng(seed)).split()
        assert [words[i] for i in (0, 2, 3, 4, 6)] == ["the", "cat", "and", "a", "dog"]
        assert words[1][0].isupper()
        for before, after in (("red", words[1].lower()), ("grey", words[5])):
            assert before != after and frozenset((before, after)) not in CLOSE_COLORS


@pytest.mark.parametrize("seed", range(10))
def test_a_typo_is_a_single_slip_and_shuffling_keeps_the_words(seed: int) -> None:
    for phrase in PHRASES:
        words = phrase.split()
        typed = made("typo", phrase, seed)
        if typed is None:
            assert phrase == "it"
        else:
            pairs = list(zip(words, typed.split(), strict=True))
            assert all(abs(len(a) - len(b)) <= 1 for a, b in pairs) and sum(a != b for a, b in pairs) <= 1
        shuffled = made("words shuffled", phrase, seed) or ""
        assert shuffled != phrase
        assert sorted(shuffled.split()) == (sorted(words) if len(words) > 1 else [])


class FakePredictor:
    """A fake predictor: the same part of the image for every phrase, with higher confidence for short phrases."""

    def predict_boxes(self, image: Image.Image, phrases: list[str]) -> RuntimeOutput:
        width, height = image.size
        boxes = np.array([[0.2 * width, 0.3 * height, 0.6 * width, 0.9 * height]] * len(phrases))
        none = np.zeros(len(phrases), np.bool_)
        return RuntimeOutput(boxes, np.array([1 / len(phrase) for phrase in phrases]), none, none)


def test_boxes_follow_the_image_and_every_query_has_its_row(tmp_path: Path) -> None:
    records = [Sample(tmp_path / "a.png", phrase, (24.0, 27.0, 72.0, 81.0)) for phrase in PHRASES]
    predictor: Any = FakePredictor()
    rows = query_image(predictor, random_image((120, 90)), records, seed=0)
    assert rows == query_image(predictor, random_image((120, 90)), records, seed=0)
    assert all(r["iou"] == pytest.approx(1, abs=1e-3) == r["agreement"] for r in rows)
    counts = {name: sum(row["perturbation"] == name for row in rows) for name in {row["perturbation"] for row in rows}}
    assert counts[CLEAN] == counts["small"] == counts["long prefix"] == len(PHRASES)
    assert counts["colors swapped"] == counts["sides swapped"] == 1
    assert {row["queried"] for row in rows if row["perturbation"] == "small"} == set(PHRASES)


@pytest.fixture
def run(tiny: Grounder, tmp_path: Path, squares: Path) -> Path:
    """A run on squares, whose phrases and file names are HTML."""
    for file in squares.parent.glob("*.png"):
        file.rename(file.with_name(f"<i>{file.name}"))
    text = squares.read_text(encoding="utf-8").replace('"image": "', '"image": "<i>')
    squares.write_text(text.replace('"the ', '"the <script>'), encoding="utf-8")
    folder = tmp_path / "run"
    save(tiny, folder)
    recipe = epmvg.Recipe.load("scenes", f"data.name={squares}", "model=tiny-resnet")
    (folder / "config.yaml").write_text(recipe.dump())
    return folder


def test_a_run_is_perturbed_whole(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(run), "--robustness", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0 and printed["clean"]["n"] > 8
    result = json.loads(json.dumps(measure_robustness(run, limit=8)))
    stem = "robustness-annotations-val"
    assert result == json.loads((run / f"{stem}.json").read_text(encoding="utf-8"))
    assert result["clean"]["n"] == 8 and result["clean"]["images"] == 2
    names = [*PHRASE_PERTURBATIONS, *IMAGE_PERTURBATIONS]
    assert [row["name"] for row in result["perturbations"]] == names
    for row in result["perturbations"]:
        assert row["n"] <= 8
        assert not row["n"] or row["acc50_interval"][0] <= row["acc50"] <= row["acc50_interval"][1]
    counts = {row["name"]: row["n"] for row in result["perturbations"]}
    assert counts["colors swapped"] == 8 and counts["sides swapped"] == 0

    epmvg.evaluate(run)  # scores the same boxes
    lines = (run / "predictions-annotations-val.jsonl").read_text(encoding="utf-8").splitlines()
    scored = {row["id"]: row["iou"] for row in map(json.loads, lines)}

    rows: dict[str, list[dict[str, Any]]] = {}
    for line in (run / f"{stem}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        right = row["perturbation"] == CLEAN
        assert not right or row["iou"] == pytest.approx(scored[row["id"]], abs=1e-4)
        rows.setdefault(row["perturbation"], []).append(row)
    assert sum(map(len, rows.values())) == 8 + sum(counts.values())


def test_images_that_cannot_be_read_are_skipped_and_named(run: Path, squares: Path) -> None:
    rows = [json.loads(line) for line in squares.read_text().splitlines()]
    (squares.parent / "torn.png").write_bytes(b"torn")
    broken = rows[0] | {"image": "torn.png", "width": 80, "height": 60, "split": "val"}
    squares.write_text("".join(json.dumps(row) + "\n" for row in [*rows, broken]))
    result = measure_robustness(run, limit=1000)
    assert len(result["skipped"]) == 1 and "torn.png" in result["skipped"][0]
    assert result["clean"]["n"] == sum(row["split"] == "val" for row in rows)


def test_unusable_bounds_are_named(run: Path) -> None:
    with pytest.raises(epmvg.InputError, match="limit=0"):
        measure_robustness(run, limit=0)
    assert not list(run.glob("robustness-*"))
