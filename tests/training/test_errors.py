"""Errors during training, caused for real where a test can: each is one sentence, and nothing is lost."""

from __future__ import annotations

import random
import resource
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from filelock import FileLock
from runs import before_each_backward, recipe, rows, same_weights, weights
from squares import draw_squares

import epmvg
from epmvg.cli import main
from epmvg.config.settings import Recipe
from epmvg.core.files import atomic_write
from epmvg.core.types import InputError
from epmvg.data.loader import GroundingLoader
from epmvg.data.registry import open_samples
from epmvg.distill.losses import Losses
from epmvg.models.grounder import Grounder
from epmvg.training import loop
from epmvg.training.checkpoint import read_checkpoint
from epmvg.training.errors import check_finite
from epmvg.training.folder import LOCK
from epmvg.training.run import Run


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EPMVG_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A recipe and its uninterrupted run."""
    folder = tmp_path_factory.mktemp("finished")
    chosen = recipe(draw_squares(folder), "train.eval_interval=0.7")
    return chosen, epmvg.train(chosen, folder / "run")


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let the system refuse longer files, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_training_resumes_after_a_full_disk(finished: tuple[Recipe, Path], tmp_path: Path) -> None:
    chosen, whole = finished
    limit = (whole / "checkpoint" / "last.pt").stat().st_size - 1  # the weights fit, the state does not
    with files_of_at_most(limit), pytest.raises(InputError, match=r"last\.pt could not be written \(File too large\)"):
        epmvg.train(chosen, tmp_path / "cut")
    assert not list((tmp_path / "cut").rglob("*.part"))
    with pytest.warns(UserWarning, match="before its first checkpoint"):
        assert same_weights(whole, epmvg.train(chosen, tmp_path / "cut", resume=True))


@pytest.mark.parametrize("room", [0, 10_000])
def test_failed_write_keeps_the_previous_file(tiny: Grounder, tmp_path: Path, room: int) -> None:
    """Whichever library writes it; torch and safetensors raise errors of their own."""
    state = tiny.state_dict()
    ways: dict[str, Callable[[Path], object]] = {
        "plain": lambda file: file.write_bytes(bytes(20_000)),
        "torch": lambda file: torch.save(state, file.open("wb")),
        "safetensors": lambda file: safetensors.torch.save_file(state, file),
    }
    for name, write in ways.items():
        file = tmp_path / name
        file.write_text("before")
        with warnings.catch_warnings(), files_of_at_most(room):
            warnings.simplefilter("ignore", ResourceWarning)
            with pytest.raises(InputError, match=f"{name} could not be written"), atomic_write(file) as temporary:
                write(temporary)
        assert file.read_text() == "before"
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_file()) == sorted(ways)


def test_damaged_checkpoint_falls_back_to_the_previous_one(finished: tuple[Recipe, Path], tmp_path: Path) -> None:
    chosen, whole = finished
    shutil.copytree(whole, tmp_path / "hurt")
    last = tmp_path / "hurt" / "checkpoint" / "last.pt"
    content = last.read_bytes()
    last.write_bytes(content[: len(content) // 2])
    spare = last.with_name("previous.pt").read_bytes()
    with pytest.warns(UserWarning, match=r"last\.pt is damaged\. Continuing from previous\.pt, step \d"):
        epmvg.train(chosen, tmp_path / "hurt", resume=True)
    assert same_weights(whole, tmp_path / "hurt") and last.with_name("previous.pt").read_bytes() == spare
    for file in (tmp_path / "hurt" / "checkpoint").iterdir():
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"last\.pt is damaged, and no other checkpoint is intact.*model\.init_from="):
        epmvg.train(chosen, tmp_path / "hurt", resume=True)


def test_flipped_bit_is_detected_or_harmless(finished: tuple[Recipe, Path], tmp_path: Path) -> None:
    folder = finished[1]
    whole = (folder / "checkpoint" / "last.pt").read_bytes()
    draw, noticed = random.Random(0), 0
    for _ in range(40):
        hurt = bytearray(whole)
        hurt[draw.randrange(len(hurt))] ^= 1 << draw.randrange(8)
        (tmp_path / "hurt.pt").write_bytes(hurt)
        state = read_checkpoint(tmp_path / "hurt.pt")
        if state is None:
            noticed += 1
        else:  # the bytes between the parts of the file
            assert all(torch.equal(state["model"][name], tensor) for name, tensor in weights(folder).items())
    assert noticed > 25


@pytest.mark.parametrize("content", ["{", "[]", '{"train": {}}', '{"train": 3, "val": 3, "teacher": null}', "\xff"])
def test_damaged_digests_are_one_sentence(finished: tuple[Recipe, Path], tmp_path: Path, content: str) -> None:
    folder = shutil.copytree(finished[1], tmp_path / "run")
    (folder / "samples.json").write_bytes(content.encode("latin-1"))
    for use in (lambda: epmvg.train(finished[0], folder, resume=True), lambda: epmvg.evaluate(folder)):
        with pytest.raises(InputError, match=r"samples\.json is damaged\. Delete it"):
            use()


def test_damaged_rows_of_metrics_are_dropped(finished: tuple[Recipe, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(finished[1], tmp_path / "run")
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'3\nnull\n[1]\n{"step": "x", "event": "step"}\n{"step": 1, "event": "\xff"}\n{"step"')
    epmvg.train(finished[0], folder, resume=True)
    assert rows(folder) == rows(finished[1])


@pytest.mark.parametrize("split", ["a/b", "../val", "."])
def test_a_split_of_any_name_is_validated(squares: Path, tmp_path: Path, split: str) -> None:
    squares.write_text(squares.read_text().replace('"split": "val"', f'"split": "{split}"'))
    run = epmvg.train(recipe(squares, "train.epochs=1", f"data.val_split={split}"), tmp_path / "run")
    (trained,) = run.glob("predictions-*.jsonl")
    assert epmvg.evaluate(run)["predictions"] == trained.name


def test_two_trainings_cannot_write_one_folder(finished: tuple[Recipe, Path]) -> None:
    chosen, folder = finished
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with FileLock(folder / LOCK), pytest.raises(InputError, match="is being written by another training"):
        epmvg.train(chosen, folder, resume=True)
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_resuming_a_finished_run_changes_nothing(finished: tuple[Recipe, Path], tmp_path: Path) -> None:
    chosen = finished[0]
    folder = shutil.copytree(finished[1], tmp_path / "run")
    before = rows(folder)
    epmvg.train(chosen, folder, resume=True)
    assert rows(folder) == before


def test_vanished_images_are_counted_and_named_once(squares: Path, tmp_path: Path) -> None:
    reported: list[dict[str, object]] = []

    def vanish(row: dict[str, object]) -> None:
        (squares.parent / "2.png").unlink(missing_ok=True)
        (squares.parent / "4.png").write_bytes(b"no image")
        reported.append(row)

    epmvg.train(recipe(squares, "train.epochs=2"), tmp_path / "run", report=vanish)
    skipped = [row for row in reported if row["event"] == "skipped"]
    named = [why for row in skipped for why in row["reasons"]]  # type: ignore[attr-defined]
    assert [sum(f"{number}.png" in why for why in named) for number in (0, 2, 4)] == [0, 1, 1]
    assert skipped[-1]["images"] == 2 and "skipped so far: 2; " in str(skipped[-1]["why"])
    assert [row for row in rows(tmp_path / "run") if row["event"] == "skipped"]


@pytest.mark.parametrize("workers", [0, 1])
def test_batch_without_readable_images_is_empty_with_reasons(squares: Path, tiny: Grounder, workers: int) -> None:
    samples = open_samples(str(squares), split="train")
    (squares.parent / "0.png").write_bytes(b"no image")
    loader = GroundingLoader(
        samples, tiny.tokenize, image_size=64, batch_size=4, num_workers=workers, skip_unreadable=True
    )
    first, *others = loader
    assert not first.samples and len(first.images) == len(first.tokens) == len(first.boxes) == 0
    assert len(first.skipped) == 1 and "0.png" in first.skipped[0]
    assert all(batch.samples and not batch.skipped for batch in others)


@pytest.mark.parametrize(
    "batch",
    [["data.batch_size=4"], ["data.batch_size=4", "train.gradient_accumulation_steps=2"], ["data.batch_size=16"]],
)
def test_training_skips_a_damaged_image(squares: Path, tmp_path: Path, batch: list[str]) -> None:
    """No step of the schedule is lost, and the other images are trained on."""
    (squares.parent / "0.png").write_bytes(b"no image")
    run = epmvg.train(recipe(squares, *batch, "data.phrases_per_image=4", "train.epochs=2"), tmp_path / "run")
    steps = -(-6 // (int(batch[0].partition("=")[2]) // 4 * (2 if len(batch) == 2 else 1)))
    last = rows(run)[-1]
    assert last["step"] == 2 * steps and last["phrases"] == 2 * 5 * 4
    (skipped,) = [row for row in rows(run) if row["event"] == "skipped"]
    assert skipped["images"] == 1 and "0.png" in str(skipped["why"])


def test_no_readable_image_is_one_sentence(squares: Path, tmp_path: Path) -> None:
    for number in range(0, 12, 2):
        (squares.parent / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"^None of the images of a whole epoch can be opened \([^\n]*\.png"):
        epmvg.train(recipe(squares), tmp_path / "run")


def test_missing_validation_image_is_rejected_before_the_first_step(squares: Path, tmp_path: Path) -> None:
    (squares.parent / "3.png").unlink()
    with pytest.raises(InputError, match=r"validation split that cannot be read: 1 \(first: .*3\.png does not exist"):
        epmvg.train(recipe(squares), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nan_loss_names_term_and_images(
    finished: tuple[Recipe, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the run can be resumed."""

    def set_nan(run: Run, batch: epmvg.Batch, losses: Losses) -> None:
        if run.state.step == 3:
            losses.terms["giou"] = losses.terms["giou"] * float("nan")
        check_finite(run, batch, losses)

    monkeypatch.setattr(loop, "check_finite", set_nan)
    with pytest.raises(InputError, match=r"nan at step 4 \(term giou; images \d+\.png.*train\.max_grad_norm=1"):
        epmvg.train(finished[0], tmp_path / "run")
    monkeypatch.setattr(loop, "check_finite", check_finite)
    assert same_weights(finished[1], epmvg.train(finished[0], tmp_path / "run", resume=True))


def test_nan_weights_are_not_saved(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(run: Run, batch: epmvg.Batch) -> None:
        if run.state.step == 3:
            next(run.model.fusion.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(loop, "check_finite", before_each_backward(breaks))
    with pytest.raises(InputError, match="contains NaN or Inf after step 4"):
        epmvg.train(recipe(squares, "train.eval_interval=3"), tmp_path / "run")
    state = read_checkpoint(tmp_path / "run" / "checkpoint" / "last.pt")
    assert state is not None and state["state"]["step"] == 2


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_out_of_memory_names_settings_to_lower(
    squares: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(loop, "check_finite", fails)
    with pytest.raises(
        InputError,
        match=r"Out of memory. Set train\.gradient_checkpointing=true and continue with --resume, .*data\.batch_size=6",
    ):
        epmvg.train(recipe(squares), tmp_path / "run")
    monkeypatch.setattr("epmvg.cli.app", fails)
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2 and capsys.readouterr().err.startswith("error: Out of memory. ")


def test_program_errors_are_not_reported_as_input_errors(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(loop, "check_finite", fails)
    with pytest.raises(RuntimeError, match="mat1"):
        epmvg.train(recipe(squares), tmp_path / "run")
