"""Several processes give the results of one: identical evaluation, the same losses and weights within rounding."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from processes import together
from runs import before_each_backward

import epmvg
from epmvg.config.settings import ModelSettings, Recipe
from epmvg.experiments.plan import Job
from epmvg.experiments.runner import run_job
from epmvg.models.factory import save
from epmvg.models.grounder import Grounder
from epmvg.training import TrainingStopped, loop
from epmvg.training import setup as prepare
from epmvg.training.folder import with_absolute_paths
from epmvg.training.run import Run

SAME = ["train.cache_features=false", "distill=null", "model=tiny-resnet", "model.pretrained=false", "model.dropout=0"]
SAME += [
    "model.dense_head=true",
    "model.similarity=true",
    "data.augment={horizontal_flip: 0.5, translate: 1.0}",
    "data.phrases_per_image=3",
]
# On a grid of 4 x 4 a small target may contain no token of the image, so that its token boxes have no mean.
SAME += ["loss.token_box_weight=0", "train.precision=fp32", "train.eval_interval=1", "train.warmup_steps=0"]
SAME += ["train.epochs=3", "train.lr=1e-3", "train.lr_backbone=1e-3", "train.log_interval=1", "train.save_interval=2"]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EPMVG_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def uneven(squares: Path) -> Path:
    """The squares with 1 to 4 phrases per training image, so that batches differ in their number of phrases."""
    kept = []
    for line in squares.read_text().splitlines():
        image, color = json.loads(line)["id"].split("-")
        if int(image) % 2 or int(image) < 4 or color == "red" or (color == "blue" and int(image) > 8):
            kept.append(line + "\n")
    squares.write_text("".join(kept))
    return squares


def rows(folder: Path, event: str) -> list[dict[str, object]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["event"] == event]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / "checkpoint" / "last.pt", weights_only=True)["model"]
    return state


@pytest.mark.parametrize("count", [2, 3])
def test_evaluation_is_identical_with_several_processes(
    tiny: Grounder, squares: Path, tmp_path: Path, count: int
) -> None:
    folder = tmp_path / "run"
    save(tiny, folder)
    settings = Recipe.load("scenes", f"data.name={squares}", "model=tiny-resnet", "data.batch_size=8")
    (folder / "config.yaml").write_text(settings.dump())
    found = []
    for processes in (1, count):
        assert together(processes, lambda: epmvg.evaluate(folder, split="val")) == [0] * processes
        files = [folder / "predictions-annotations-val.jsonl", folder / "evaluation-annotations-val.json"]
        found.append([file.read_text() for file in files])
    assert found[0] == found[1]
    expected = [json.loads(line)["id"] for line in squares.read_text().splitlines() if '"val"' in line]
    assert [json.loads(line)["id"] for line in found[1][0].splitlines()] == expected


def test_two_processes_and_accumulation_equal_one_batch(uneven: Path, tmp_path: Path) -> None:
    """Losses within 1e-4 of themselves, weights within 1e-4: sums are taken in another order.

    Without the parameters that a softmax ignores (the heatmap's bias, the biases of attention's keys): their gradients
    are rounding errors, which AdamW makes as large as any.
    """
    ways = {"one": (1, 8, 1), "accumulated": (1, 4, 2), "two": (2, 8, 1), "both": (2, 4, 2)}
    curves, ends = {}, {}
    for name, (count, batch_size, accumulate) in ways.items():
        recipe = Recipe.load(
            "scenes",
            f"data.name={uneven}",
            *SAME,
            f"data.batch_size={batch_size}",
            f"train.gradient_accumulation_steps={accumulate}",
        )
        work = lambda recipe=recipe, name=name: epmvg.train(recipe, tmp_path / name)  # noqa: E731
        assert together(count, work) == [0] * count
        curves[name] = [row["loss"] for row in rows(tmp_path / name, "step")]
        ends[name] = weights(tmp_path / name)
        scores = [row["acc50"] for row in rows(tmp_path / name, "evaluate")]
        assert scores == [row["acc50"] for row in rows(tmp_path / "one", "evaluate")]
    assert len(curves["one"]) == 6
    for name in ("accumulated", "two", "both"):
        for step, loss in zip(curves["one"], curves[name], strict=True):
            assert loss == pytest.approx(step, rel=1e-4, abs=2e-5), name
        for key, tensor in ends["one"].items():
            own, other = without_softmax_shift(key, tensor), without_softmax_shift(key, ends[name][key])
            torch.testing.assert_close(other, own, atol=1e-4, rtol=1e-3, msg=key)


def without_softmax_shift(name: str, parameter: torch.Tensor) -> torch.Tensor:
    """A parameter without the part that only shifts the logits of a softmax."""
    if name == "dense_head.heatmap_head.bias" or name.endswith("key.bias"):
        return parameter.new_zeros(0)
    if name.endswith("in_proj_bias"):
        queries, _, values = parameter.chunk(3)
        return torch.cat([queries, values])
    return parameter


@pytest.mark.parametrize(
    "settings, words",
    [
        (["data.batch_size=3"], "data.batch_size=3 is for all processes together and cannot be divided among 2"),
        (["data.batch_size=4"], "has 1 training samples for 2 processes"),
    ],
)
def test_indivisible_batches_are_rejected_on_all_processes(
    squares: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], settings: list[str], words: str
) -> None:
    lines = squares.read_text().splitlines(keepends=True)
    if settings != ["data.batch_size=3"]:
        squares.write_text("".join(line for line in lines if '"0-red' in line or '"val"' in line))
    chosen = Recipe.load("scenes", f"data.name={squares}", *SAME, *settings)
    assert together(2, lambda: epmvg.train(chosen, tmp_path / "run")) == [2, 2]
    errors = capfd.readouterr().err
    assert errors.count(words) == 2 and "Traceback" not in errors
    assert not (tmp_path / "run").exists()


def test_two_processes_equal_one_although_one_has_no_readable_image(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged image, a last batch of one, and other initial weights in the second process: the result is the same."""
    real = prepare._build_model

    def drawn_anew(settings: ModelSettings) -> tuple[Grounder, list[str]]:
        if os.environ.get("RANK") == "1":
            torch.manual_seed(99)
        return real(settings)

    monkeypatch.setattr(prepare, "_build_model", drawn_anew)
    (squares.parent / "4.png").write_bytes(b"no image")
    batch = ["data.batch_size=8", "data.phrases_per_image=4", "train.epochs=2"]
    recipe = Recipe.load("scenes", f"data.name={squares}", *SAME, *batch)
    for count in (1, 2):
        assert together(count, partial(epmvg.train, recipe, tmp_path / f"{count}")) == [0] * count
    alone, shared = (rows(tmp_path / f"{count}", "step") for count in (1, 2))
    assert [row["phrases"] for row in alone] == [row["phrases"] for row in shared]
    for one, two in zip(alone, shared, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4, abs=2e-5)
    (skipped,) = rows(tmp_path / "2", "skipped")
    assert skipped["images"] == 1 and "4.png" in str(skipped["why"])


def test_killed_process_stops_the_run_and_it_resumes_to_the_same_weights(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe.load("scenes", f"data.name={squares}", *SAME, "data.batch_size=4", "model.dropout=0.1")
    assert together(2, lambda: epmvg.train(recipe, tmp_path / "whole")) == [0, 0]

    def killed(run: Run, batch: epmvg.Batch) -> None:
        if run.state.step == 5 and run.accelerator.process_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(loop, "check_finite", before_each_backward(killed))
    assert together(2, lambda: epmvg.train(recipe, tmp_path / "cut")) == [2, -signal.SIGKILL]
    errors = capfd.readouterr().err
    assert "Another process of this training ended" in errors and "--resume" in errors and "Traceback" not in errors
    monkeypatch.undo()
    monkeypatch.setenv("EPMVG_CACHE", str(tmp_path / "cache"))
    assert together(1, lambda: epmvg.train(recipe, tmp_path / "cut", resume=True)) == [2]
    assert "was trained by 2 processes" in capfd.readouterr().err
    disks = ["cut", "another machine's"]
    apart = lambda: epmvg.train(recipe, tmp_path / disks[int(os.environ["RANK"])], resume=True)  # noqa: E731
    assert together(2, apart) == [2, 2]
    assert "(step 4, none). Let all machines share that folder" in capfd.readouterr().err
    assert together(2, lambda: epmvg.train(recipe, tmp_path / "cut", resume=True)) == [0, 0]
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(tmp_path / "cut")[name]), name


def test_a_row_of_a_table_that_two_processes_trained_and_resumed_is_taken_as_it_is(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unfinished it needs as many processes again; finished, the table evaluates it in one."""
    recipe = with_absolute_paths(Recipe.load("scenes", f"data.name={squares}", *SAME, "data.batch_size=4"))
    job = Job(recipe, ("val",), tmp_path / "row", 13, "0")

    def killed(run: Run, batch: epmvg.Batch) -> None:
        if run.state.step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    def reproduce(expected: str) -> int:
        return together(1, lambda: os._exit(run_job(job, lambda row: None).state != expected))[0] or 0

    monkeypatch.setattr(loop, "check_finite", before_each_backward(killed))
    assert together(2, lambda: epmvg.train(recipe, job.folder)) == [-signal.SIGKILL] * 2
    monkeypatch.undo()
    monkeypatch.setenv("EPMVG_CACHE", str(tmp_path / "cache"))
    assert reproduce("cannot run") == 0
    assert together(2, lambda: epmvg.train(recipe, job.folder, resume=True)) == [0, 0]
    trained = rows(job.folder, "step")
    assert reproduce("done") == 0 and rows(job.folder, "step") == trained
    assert set(json.loads((job.folder / "result.json").read_text())["metrics"]) == {"val"}


def test_signal_to_one_process_stops_all_after_the_same_step(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.load("scenes", f"data.name={squares}", *SAME, "data.batch_size=4", "train.save_interval=100")

    def signalled(run: Run, batch: epmvg.Batch) -> None:
        if run.state.step == 1 and run.accelerator.process_index == 1 and not run.stop.signal:
            os.kill(os.getpid(), signal.SIGTERM)

    def work() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # coverage sets a handler, which training would keep
        try:
            epmvg.train(recipe, tmp_path / "run")
        except TrainingStopped as stop:
            os._exit(stop.status)

    monkeypatch.setattr(loop, "check_finite", before_each_backward(signalled))
    assert together(2, work) == [128 + signal.SIGTERM] * 2
    checkpoint = torch.load(tmp_path / "run" / "checkpoint" / "last.pt", weights_only=True)
    assert checkpoint["state"]["step"] == 3 and len(checkpoint["rng"]) == 2


def test_error_of_one_process_is_raised_on_all(
    squares: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = [squares, tmp_path / "missing.jsonl"]

    def work() -> None:
        epmvg.train(Recipe.load("scenes", f"data.name={names[int(os.environ['RANK'])]}", *SAME), tmp_path / "run")

    assert together(2, work) == [2, 2]
    assert capfd.readouterr().err.count("missing.jsonl cannot be opened") == 2
    assert not (tmp_path / "run").exists()
