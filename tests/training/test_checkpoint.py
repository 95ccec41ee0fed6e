"""Stopping and resuming: what a checkpoint contains, and which settings and data may change."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import CONFIG
from runs import before_each_backward, checkpoint, recipe, rows, same_weights
from squares import draw_squares

import epmvg
from epmvg.cli import main
from epmvg.config.settings import Recipe
from epmvg.core.types import InputError
from epmvg.data.registry import open_samples
from epmvg.data.samples import SampleDigest
from epmvg.models.factory import save
from epmvg.models.grounder import Grounder
from epmvg.training import TrainingStopped, loop, run
from epmvg.training.checkpoint import _rng_states, _set_rng_states
from epmvg.training.folder import differences, with_absolute_paths
from epmvg.training.run import Run

FAST = ["train.epochs=2", "train.eval_interval=2", "model.dropout=0.2"]  # 8 steps


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EPMVG_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True, scope="module")
def default_handlers() -> Iterator[None]:
    """Training leaves handlers of its caller alone: coverage has one, and a shell ignores SIGINT in the background."""
    terminated = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    interrupted = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, terminated)
    signal.signal(signal.SIGINT, interrupted)


def at_step(step: int, act: Callable[[], object]) -> Callable[[dict[str, object]], None]:
    """Return a report that acts when a step is logged."""

    def report(row: dict[str, object]) -> None:
        if row["event"] == "step" and row["step"] == step:
            act()

    return report


def stop_at(step: int, number: int = signal.SIGTERM) -> Callable[[dict[str, object]], None]:
    return at_step(step, lambda: os.kill(os.getpid(), number))


def saved_step(folder: Path) -> int:
    return int(checkpoint(folder)["state"]["step"])


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_signal_ends_training_after_a_checkpoint(squares: Path, tmp_path: Path, name: str) -> None:
    number = getattr(signal, name)
    chosen, before = recipe(squares, *FAST, "train.save_interval=100"), signal.getsignal(number)
    with pytest.raises(TrainingStopped, match=r"stopped at step 3 of 8") as stopped:
        epmvg.train(chosen, tmp_path / "cut", report=stop_at(2, number))
    assert stopped.value.status == 128 + number and saved_step(tmp_path / "cut") == 3
    assert signal.getsignal(number) == before
    if name == "SIGTERM":
        epmvg.train(chosen, tmp_path / "cut", resume=True)
        assert same_weights(epmvg.train(chosen, tmp_path / "whole"), tmp_path / "cut")


def test_second_signal_ends_training_at_once(squares: Path, tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as ended:
        epmvg.train(recipe(squares, *FAST), tmp_path / "run", report=at_step(1, twice))
    assert not isinstance(ended.value, TrainingStopped) and not (tmp_path / "run" / "checkpoint").exists()


def test_signal_handlers_of_the_caller_stay_and_threads_can_train(squares: Path, tmp_path: Path) -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        epmvg.train(recipe(squares, *FAST, "train.epochs=1"), tmp_path / "run", report=stop_at(1))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]
    thread = threading.Thread(target=epmvg.train, args=(recipe(squares, "train.epochs=1"), tmp_path / "thread"))
    thread.start()
    thread.join()
    assert (tmp_path / "thread" / "model.safetensors").exists()


def test_command_line_prints_how_to_resume(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["scenes", f"data.name={squares}", "model=tiny-resnet", "model.pretrained=false", "distill=null"]
    settings += [
        "train.cache_features=false",
        "train.epochs=2",
        "train.warmup_steps=0",
        "data.batch_size=8",
        "--out",
        str(tmp_path / "a run"),
    ]

    def signalled(run: Run, batch: epmvg.Batch) -> None:
        if run.state.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "check_finite", before_each_backward(signalled))
    with pytest.raises(SystemExit) as ended:
        main(["train", *settings])
    output = capsys.readouterr()
    assert ended.value.code == 128 + signal.SIGTERM
    assert f"training on {SampleDigest.of(open_samples(str(squares), split='train'))}, validation on" in output.out
    (line,) = [line for line in output.err.splitlines() if line.startswith("stopped at step ")]
    assert line.endswith(f"--out '{tmp_path / 'a run'}' --resume")
    with pytest.raises(SystemExit) as ended:
        main(["train", *settings, "--resume"])
    output = capsys.readouterr()
    assert ended.value.code in (0, None)
    assert "resumed at step " in output.out and "best on val: Acc@0.5 0." in output.out
    assert f"epmvg evaluate '{tmp_path / 'a run'}'" in output.out and "epmvg predict" in output.out


def test_failed_validation_loses_no_checkpoint(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = recipe(squares, *FAST, "train.save_interval=100", "train.log_interval=1")

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("scoring failed")

    monkeypatch.setattr(run, "predict_rows", fails)
    with pytest.raises(RuntimeError, match="scoring failed"):
        epmvg.train(chosen, tmp_path / "cut")
    assert saved_step(tmp_path / "cut") == 8
    monkeypatch.undo()
    epmvg.train(chosen, tmp_path / "cut", resume=True)
    assert [row["step"] for row in rows(tmp_path / "cut") if row["event"] == "evaluate"] == [8]


def test_unreadable_validation_image_is_a_reported_miss(squares: Path, tmp_path: Path) -> None:
    """One that becomes unreadable during training; one that is unreadable before is rejected before the first step."""
    image = squares.parent / "1.png"
    chosen = recipe(squares, *FAST, "data.batch_size=24")
    reported: list[dict[str, object]] = []

    def report(row: dict[str, object]) -> None:
        reported.append(row)
        if row["event"] == "step":
            image.write_bytes(b"no image")

    epmvg.train(chosen, tmp_path / "run", report=report)
    (skipped,) = [row for row in reported if row["event"] == "skipped"]
    assert skipped["images"] == 1 and "misses: 1" in str(skipped["why"]) and "1.png" in str(skipped["why"])
    (score,) = [row for row in reported if row["event"] == "evaluate"]
    assert score["n"] == 24
    kept = [
        json.loads(line)
        for line in (tmp_path / "run" / "predictions-annotations-val.jsonl").read_text().split("\n")[:-1]
    ]
    missed = [row for row in kept if row["box"] is None]
    assert len(kept) == 24 and len(missed) == 4 and all(row["iou"] == 0 and "1.png" in row["image"] for row in missed)
    with pytest.raises(InputError, match=r"validation split that cannot be read: 1 \(first: .*1\.png"):
        epmvg.train(chosen, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def edited(data: Path, change: Callable[[list[dict[str, object]]], list[dict[str, object]]]) -> None:
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    data.write_text("".join(json.dumps(row) + "\n" for row in change(lines)))


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the squares in `data`, and a run on them that was stopped after 3 of 8 steps."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "data").mkdir()
    data = draw_squares(folder / "data")
    with pytest.raises(TrainingStopped):
        epmvg.train(recipe(data, *FAST), folder / "run", report=stop_at(2))
    return folder


@pytest.fixture
def stopped(begun: Path, tmp_path: Path) -> Path:
    """A copy of that folder elsewhere."""
    return shutil.copytree(begun, tmp_path / "copy")


@pytest.mark.parametrize("split", ["train", "val"])
def test_changed_samples_are_rejected_on_resume(stopped: Path, split: str) -> None:
    data = stopped / "data" / "annotations.jsonl"
    kind = {"train": "training", "val": "validation"}[split]
    original = data.read_text()
    edited(data, lambda lines: lines[:-4] if split == "val" else lines[4:])
    before = {file: file.read_bytes() for file in (stopped / "run").rglob("*.*")}
    with pytest.raises(InputError, match=rf"^The {kind} samples .*24 phrases of 6 images then, 20 phrases of 5 images"):
        epmvg.train(recipe(data, *FAST), stopped / "run", resume=True)
    data.write_text(original)
    edited(data, lambda lines: [row | {"bbox": [1, 1, 20, 20]} if row["split"] == split else row for row in lines])
    with pytest.raises(InputError, match=rf"^The {kind} samples .* changed since .*or start another --out"):
        epmvg.train(recipe(data, *FAST), stopped / "run", resume=True)
    assert before == {file: file.read_bytes() for file in (stopped / "run").rglob("*.*")}


def test_moved_data_and_resumable_settings_are_accepted_and_saved(stopped: Path, begun: Path, tmp_path: Path) -> None:
    data = stopped / "data" / "annotations.jsonl"
    moved = recipe(data, *FAST, "data.num_workers=1", "train.log_interval=2", "train.gradient_checkpointing=true")
    epmvg.train(moved, stopped / "run", resume=True)
    config = Recipe.load(stopped / "run" / "config.yaml")
    assert config.data.name == str(data) and config.data.num_workers == 1
    assert same_weights(stopped / "run", epmvg.train(recipe(begun / "data" / data.name, *FAST), tmp_path / "whole"))


def test_missing_training_images_are_rejected_on_resume(stopped: Path) -> None:
    (stopped / "data" / "0.png").unlink()
    with pytest.raises(InputError, match=r"20 phrases of 5 images now\)\. Restore .*also images that are missing"):
        epmvg.train(recipe(stopped / "data" / "annotations.jsonl", *FAST), stopped / "run", resume=True)


def test_sample_digest_does_not_depend_on_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    here, there = (open_samples(str(draw_squares(tmp_path / name)), split=None) for name in ("a", "b"))
    assert SampleDigest.of(here) == SampleDigest.of(there)
    monkeypatch.chdir(tmp_path)
    assert SampleDigest.of(open_samples("a/annotations.jsonl", split=None)) == SampleDigest.of(here)
    assert len({SampleDigest.of(part).sha256 for part in (here, here[::-1], here[1:], [*here, here[0]])}) == 4


def test_changed_teacher_is_rejected_on_resume(squares: Path, tmp_path: Path) -> None:
    file = tmp_path / "teacher.json"
    file.write_text(json.dumps(CONFIG))
    chosen = recipe(squares, *FAST, f"distill.teacher={file}", "distill.pretrained=random")
    with pytest.raises(TrainingStopped):
        epmvg.train(chosen, tmp_path / "run", report=stop_at(1))
    file.write_text(json.dumps(CONFIG | {"embed_dim": 16}))
    with pytest.raises(InputError, match=r"The teacher .*teacher\.json changed since"):
        epmvg.train(chosen, tmp_path / "run", resume=True)


def test_only_settings_that_change_the_weights_must_be_equal(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(squares.parent)
    before = with_absolute_paths(recipe(squares.name))
    free = ["data.num_workers=3", "train.gradient_checkpointing=true", "train.log_interval=7"]
    free += ["train.save_interval=9", "data.root=/elsewhere"]
    for name in (f"./{squares.name}", str(squares), f"/scratch/{squares.name}"):
        assert differences(before, with_absolute_paths(recipe(name, *free))) == []
    changed = differences(before, with_absolute_paths(recipe(squares.name, "train.epochs=5", "model.max_length=12")))
    assert sorted(changed) == ["model.overrides.max_length=12 (was null)", "train.epochs=5.0 (was 3.0)"]
    cached = [with_absolute_paths(recipe(squares.name, f"data.cache_gb={gb}")) for gb in (1, 2)]
    assert differences(before, cached[0]) == ["data.cache_gb=1.0 (was 0.0)"] and differences(*cached) == []
    assert differences(before, with_absolute_paths(recipe("other.jsonl"))) != []
    assert differences(recipe("scenes"), recipe("flickr-mini")) == ["data.name=flickr-mini (was scenes)"]
    assert differences(recipe("a", "distill=RN50"), recipe("a", "distill=RN101"))


def test_missing_validation_image_does_not_end_a_resumed_run(stopped: Path) -> None:
    (stopped / "data" / "1.png").unlink()
    reported: list[dict[str, object]] = []
    epmvg.train(
        recipe(stopped / "data" / "annotations.jsonl", *FAST), stopped / "run", resume=True, report=reported.append
    )
    assert [row["n"] for row in reported if row["event"] == "evaluate"] == [24]
    assert any("1.png does not exist" in str(row.get("why")) for row in reported)


def test_runs_without_newer_settings_are_resumed(stopped: Path) -> None:
    config = stopped / "run" / "config.yaml"
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if "lr_teacher" not in line))
    epmvg.train(recipe(stopped / "data" / "annotations.jsonl", *FAST), stopped / "run", resume=True)
    assert saved_step(stopped / "run") == 8


def test_run_is_used_from_any_folder(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(squares.parent)
    epmvg.train(recipe(squares.name, "train.epochs=1"), "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    scores = epmvg.evaluate("../run")
    assert scores["n"] == 24 and scores["split"] == "val"
    assert epmvg.evaluate("../run", data=f"../{squares.name}")["split"] == "val"
    edited(squares, lambda lines: lines[:-4])
    with pytest.warns(UserWarning, match=r"val samples of .* changed since .*24 phrases .* then, 20 phrases"):
        epmvg.evaluate("../run")


def test_unreadable_image_is_a_miss_in_evaluation(tiny: Grounder, squares: Path, tmp_path: Path) -> None:
    save(tiny, tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text(recipe(squares).dump())
    whole = epmvg.evaluate(tmp_path / "run")
    kept = (tmp_path / "run" / whole["predictions"]).read_text().splitlines()
    others = sum(row["iou"] for row in map(json.loads, kept) if "/1.png" not in row["image"])
    (squares.parent / "1.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"cannot be read and their phrases count as misses \(first: .*1\.png\)"):
        scores = epmvg.evaluate(tmp_path / "run")
    assert (whole["unread_images"], scores["unread_images"], scores["n"]) == (0, 1, 24)
    assert scores["miou"] == pytest.approx(others / 24, abs=1e-6)
    for number in range(12):
        (squares.parent / f"{number}.png").unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"None of the images of .* can be read"):
        epmvg.evaluate(tmp_path / "run")


def test_every_random_generator_is_saved_and_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of two GPUs as well, which stand-ins take the place of here."""
    devices = [torch.arange(4, dtype=torch.uint8) + number for number in range(2)]
    restored: dict[int, torch.Tensor] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: devices)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, number: restored.update({number: state}))

    def draw() -> tuple[object, ...]:
        return torch.rand(3).tolist(), random.random(), np.random.rand(3).tolist(), random.gauss(0, 1)

    torch.save(_rng_states(), tmp_path / "states.pt")
    first = draw()
    _set_rng_states(torch.load(tmp_path / "states.pt", weights_only=True))
    assert draw() == first
    assert restored.keys() == {0, 1} and all(torch.equal(restored[number], devices[number]) for number in restored)


@pytest.mark.parametrize("kind", ["corners", "fractions"])
def test_boxes_of_another_convention_are_rejected_before_the_first_step(
    squares: Path, tmp_path: Path, kind: str
) -> None:
    def change(x: float, y: float, w: float, h: float) -> list[float]:
        return [x, y, x + w, y + h] if kind == "corners" else [x / 80, y / 60, w / 80, h / 60]

    def converted(row: dict[str, object]) -> dict[str, object]:
        plain = {key: value for key, value in row.items() if key not in ("width", "height")}
        return plain | {"bbox": change(*row["bbox"])}  # type: ignore[misc]

    edited(squares, lambda lines: list(map(converted, lines)))
    words = {"corners": "as corners, 24 do", "fractions": "as fractions of the sides"}[kind]
    with pytest.raises(InputError, match=rf"annotations\.jsonl: .*{words}"):
        epmvg.train(recipe(squares), tmp_path / "run")
    assert not (tmp_path / "run").exists()
