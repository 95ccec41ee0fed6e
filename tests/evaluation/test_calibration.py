"""The IoU head leaves the boxes unchanged, and a calibration applies wherever a run is used."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import epmvg
from epmvg.config.settings import Recipe
from epmvg.core.calibration import CONFIDENCE_FILE, Calibration, read_calibration
from epmvg.core.files import write_rows
from epmvg.core.types import InputError
from epmvg.data.registry import open_samples
from epmvg.distill.losses import iou_head_loss
from epmvg.evaluation.calibration import fit_calibration, fit_iou_head, threshold_for
from epmvg.evaluation.evaluate import evaluation_loader, predict_rows
from epmvg.evaluation.statistics import calibration_error
from epmvg.models.factory import create_model, load, save

NOUNS = {"red": "apple", "green": "frog", "blue": "whale", "yellow": "lemon"}


@pytest.fixture
def named(squares: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Squares with names, two per image, so that the other names are negative phrases."""
    monkeypatch.setenv("EPMVG_CACHE", str(tmp_path / "cache"))
    rows = [json.loads(line) for line in squares.read_text().splitlines()]
    kept = [row for number, row in enumerate(rows) if number % 4 < 2]
    for row in kept:
        row["phrase"] = f"the {NOUNS[row['phrase'].split()[1]]}"
    squares.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return squares


def train(named: Path, out: Path, *settings: str) -> Path:
    tiny = ["model=tiny-resnet", "model.pretrained=false", "model.dense_head=true", "model.similarity=true"]
    tiny += ["model.dropout=0.1", "data.batch_size=6", "data.phrases_per_image=2", "train.epochs=2", "train.lr=1e-3"]
    tiny += [
        "train.cache_features=false",
        "train.max_grad_norm=0.1",
        "train.log_interval=1",
        "train.warmup_steps=0",
        "distill=null",
    ]
    return epmvg.train(Recipe.load("scenes", f"data.name={named}", *tiny, *settings), out)


def test_a_iou_head_changes_nothing_else(named: Path, tmp_path: Path) -> None:
    """Same seed with dropout and clipped gradients: without it, with it, and with negative phrases."""
    plain = train(named, tmp_path / "plain")
    scored = train(named, tmp_path / "scored", "model.iou_head=true", "train.negatives_per_phrase=0")
    negative = train(named, tmp_path / "negative", "model.iou_head=true", "train.negatives_per_phrase=1")
    state, with_head, with_negatives = (
        torch.load(run / "checkpoint" / "last.pt", weights_only=True)["model"] for run in (plain, scored, negative)
    )
    heads = {name for name in with_head if name.startswith("iou_head.")}
    assert heads and with_head.keys() - heads == state.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, with_head[name]) and torch.equal(tensor, with_negatives[name]), name
    assert any(not torch.equal(with_head[name], with_negatives[name]) for name in heads)  # trained with them
    fresh = load(plain).new_iou_head().state_dict()
    assert any(not torch.equal(with_head[f"iou_head.{name}"], value) for name, value in fresh.items())
    boxes = [[row["box"] for row in predictions(run)] for run in (plain, scored, negative)]
    assert boxes[0] == boxes[1] == boxes[2]


def predictions(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "predictions-annotations-val.jsonl").read_text().splitlines()]


def test_the_score_s_target_is_the_iou_and_nothing_for_absent_phrases() -> None:
    """The loss is lowest where the expected IoU is the IoU."""
    box, target = torch.tensor([[0.5, 0.5, 0.4, 0.4]]), torch.tensor([[0.5, 0.5, 0.4, 0.2]])  # IoU 1/2
    right, low, high = (iou_head_loss(torch.tensor([value]), box, target) for value in (0.0, -1.0, 1.0))
    assert right < low and right < high
    nothing, something = (iou_head_loss(torch.zeros(1), box, target, torch.tensor([value])) for value in (-3.0, 0.0))
    assert nothing < something


def test_the_head_scores_the_box_of_inference() -> None:
    model = create_model("tiny-resnet", dense_head=True, similarity=True, iou_head=True, dropout=0.0)
    image, image_mask = torch.rand(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.bool)
    tokens, token_mask = model.tokenize(["the frog", "a whale"])
    image_index = torch.zeros(2, dtype=torch.int64)
    with torch.no_grad():
        training = model.train()(
            image,
            image_mask,
            tokens,
            token_mask,
            image_index,
            negative_pairs=torch.tensor([[0], [1]]),
            output_negative_similarity=True,
        )
        reading = model.eval()(image, image_mask, tokens, token_mask, image_index)
    torch.testing.assert_close(training.iou_box, reading.box)
    torch.testing.assert_close(training.iou_logits, reading.iou_logits)
    torch.testing.assert_close(training.negative_iou_logits, reading.iou_logits[1:])  # phrase 1 with image 0
    torch.testing.assert_close(training.negative_similarity, reading.similarity[1:])
    assert not torch.allclose(training.box, reading.box)


def test_similarities_are_trained_to_tell_negative_pairs(named: Path, tmp_path: Path) -> None:
    settings = ["train.negatives_per_phrase=1", "loss.match_weight=5", "train.epochs=12", "train.eval_interval=12"]
    folder = train(named, tmp_path / "match", *settings, "model.dropout=0", "train.max_grad_norm=null")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    match = [row["loss"]["match"] for row in rows if row["event"] == "step" and "match" in row["loss"]]  # has pairs
    assert sum(match[-4:]) < 0.75 * sum(match[:4])
    with pytest.raises(InputError, match=re.escape("Set train.negatives_per_phrase=1")):
        train(named, tmp_path / "none", "loss.match_weight=1", "train.negatives_per_phrase=0")
    with pytest.raises(InputError, match=re.escape("Set loss.match_weight=0 or model.similarity=true")):
        train(named, tmp_path / "lacks", "loss.match_weight=1", "model.similarity=false")


@pytest.mark.parametrize("fit_head", [False, True])
def test_a_calibration_applies_everywhere(named: Path, tmp_path: Path, fit_head: bool) -> None:
    run = train(named, tmp_path / "run", "model.iou_head=false")
    image = named.parent / "1.png"
    before = epmvg.Predictor(run)(image, ["the frog", "the lemon"])
    with pytest.raises(InputError, match="epmvg calibrate"):
        epmvg.Predictor(run)(image, "the frog", min_score="auto")
    done = epmvg.calibrate(run, fit_head=fit_head, false_positive_rate=0.3)
    model = load(run)
    assert (model.iou_head is not None) == fit_head and model.calibration is not None
    assert json.loads((run / CONFIDENCE_FILE).read_text()) == done and done["fitted"]["n"] == 12

    after = epmvg.Predictor(run)(image, ["the frog", "the lemon"], min_score="auto")
    assert [one.box for one in after] == [one.box for one in before]
    assert [one.found for one in after] == [one.score >= done["threshold"] for one in after]
    result = epmvg.evaluate(run)
    rows = predictions(run)
    score = next(row["score"] for row in rows if str(row["image"]).endswith("1.png") and row["phrase"] == "the frog")
    confidence = epmvg.Predictor(run)(image, ["the frog"])[0].score
    assert score == pytest.approx(confidence, abs=1e-3)
    correct = np.array([row["iou"] >= 0.5 for row in rows], np.float64)
    scores = np.array([row["score"] for row in rows], np.float64)
    assert result["confidence"]["calibrated"] == (done["method"] != "none") and result["n"] == 12 == len(rows)
    assert result["confidence"]["ece"] == pytest.approx(
        calibration_error(scores, correct), abs=1e-5
    )  # scores of a file are rounded
    negative = [json.loads(line) for line in (run / "negatives-annotations-val.jsonl").read_text().splitlines()]
    assert len(negative) == result["confidence"]["negatives"] > 0
    assert not {(row["image"], row["phrase"]) for row in rows} & {(row["image"], row["phrase"]) for row in negative}

    assert result["confidence"]["calibrated_on_these_samples"] and result["weights"] == done["weights"]

    other = load(run)
    torch.manual_seed(1)
    torch.nn.init.normal_(other.reg_token.weight)
    other.calibration = None
    save(other, tmp_path / "other")
    shutil.copy(run / CONFIDENCE_FILE, tmp_path / "other")
    with pytest.raises(InputError, match="belongs to other weights"):
        load(tmp_path / "other")

    fresh = load(run)
    fresh.calibration = None
    save(fresh, run)  # other weights, by their digest
    assert not (run / CONFIDENCE_FILE).exists()


def test_unusable_calibrations_are_rejected(named: Path, tmp_path: Path) -> None:
    run = train(named, tmp_path / "run", "model.dense_head=false", "model.similarity=false", "train.epochs=0.5")
    with pytest.raises(InputError, match="--fit-head"):
        epmvg.calibrate(run)
    with pytest.raises(InputError, match="for reporting"):
        epmvg.calibrate(run, fit_head=True, split="test")
    with pytest.raises(InputError, match="between 0 and 1"):
        epmvg.calibrate(run, fit_head=True, false_positive_rate=2.0)
    with pytest.raises(InputError, match=r"trained on all images of .* train"):
        epmvg.calibrate(run, fit_head=True, split="train")
    copy = tmp_path / "copy"  # the same images under other names
    copy.mkdir()
    trained = [json.loads(line) for line in named.read_text().splitlines()]
    for row in trained:
        shutil.copy(named.parent / row["image"], copy / f"other-{row['image']}")
        row |= {"image": f"other-{row['image']}", "split": "val" if row["split"] == "train" else "other"}
    (copy / "copies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in trained))
    with pytest.raises(InputError, match="trained on all images"):
        epmvg.calibrate(run, data=str(copy / "copies.jsonl"), fit_head=True)
    with pytest.raises(InputError, match="at least two images"):
        fit_iou_head(load(run), open_samples(str(named), split="val")[:2], batch_size=64)
    epmvg.calibrate(run, fit_head=True, device="cpu")  # the paper's model can have one too
    assert 0 < epmvg.Predictor(run)(named.parent / "1.png", "the frog")[0].score < 1


def test_a_start_with_or_without_a_iou_head_fits(named: Path, tmp_path: Path) -> None:
    for number, (first, second) in enumerate((("true", "false"), ("false", "true"))):
        start = train(named, tmp_path / f"start{number}", f"model.iou_head={first}", "train.epochs=0.5")
        end = train(named, tmp_path / f"end{number}", f"model.iou_head={second}", f"model.init_from={start}")
        assert (load(end).iou_head is not None) == (second == "true")


def test_scores_reach_calibration_and_thresholds_unrounded(named: Path, tmp_path: Path) -> None:
    """Scores are rounded only in files."""
    model = create_model("tiny-resnet", dense_head=True).eval()
    records = open_samples(str(named), split="val")
    rows = predict_rows(model, evaluation_loader(model, records).batches(0))
    assert any(round(row["score"], 6) != row["score"] for row in rows)
    write_rows(tmp_path / "rows.jsonl", rows)
    written = [json.loads(line)["score"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert written == [round(row["score"], 6) for row in rows]
    with pytest.raises(InputError, match="NaN or Inf"):
        write_rows(tmp_path / "bad.jsonl", [rows[0] | {"box": [float("nan")] * 4}])
    assert not (tmp_path / "bad.jsonl").exists()


# Fitting


@pytest.mark.parametrize(("a", "b", "c"), [(1.0, 1.0, 0.0), (0.4, 0.4, -0.8), (2.5, 0.6, 0.7)])
def test_calibration_undoes_what_was_done_to_probabilities(a: float, b: float, c: float) -> None:
    random = np.random.default_rng(2)
    score = random.uniform(0.02, 0.98, 6000)
    truth = Calibration("beta", a, b, c)(score)
    correct = (random.random(6000) < truth).astype(float)
    found, held_out = fit_calibration(score, correct, [str(i // 3) for i in range(6000)])
    assert np.abs(found(score) - truth).mean() < 0.02
    assert calibration_error(held_out, correct) < 0.03
    order = np.argsort(score)
    assert (np.diff(found(score)[order]) >= 0).all()


def test_a_score_that_says_nothing_becomes_the_base_rate() -> None:
    """Higher scores for wrong boxes: a mapping may flatten them, but never turn them round."""
    random = np.random.default_rng(3)
    correct = (random.random(900) < 0.3).astype(float)
    score = np.clip(0.8 - 0.3 * correct + 0.1 * random.standard_normal(900), 0, 1)
    found, held_out = fit_calibration(score, correct, [str(i) for i in range(900)])
    assert found.a >= 0 and found.b >= 0
    assert np.abs(held_out - correct.mean()).max() < 0.1


def test_the_threshold_keeps_its_promise_on_new_phrases() -> None:
    random = np.random.default_rng(4)
    passed = []
    for _ in range(400):
        negative, new = np.split(random.random(139), [39])
        threshold = threshold_for(0.1, negative)
        assert threshold is not None
        passed.append((new >= threshold).mean())
    assert 0.07 < np.mean(passed) <= 0.105
    assert threshold_for(0.1, np.full(8, 0.5)) is None
    tied = threshold_for(0.1, np.full(50, 0.5))
    assert tied is not None and tied > 0.5


def test_a_calibration_survives_its_file_and_a_torn_one_is_named(tmp_path: Path) -> None:
    assert read_calibration(tmp_path) is None
    made = Calibration("beta", 1.5, 0.25, -0.125, 0.1 + 0.2, 0.1, {"n": 3})
    (tmp_path / CONFIDENCE_FILE).write_text(made.dump())
    assert read_calibration(tmp_path) == made
    (tmp_path / CONFIDENCE_FILE).write_text(made.dump()[:40])
    with pytest.raises(InputError, match=r"confidence\.json cannot be read"):
        read_calibration(tmp_path)
