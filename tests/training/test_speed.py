"""What keeps a GPU busy: no step waits for it, copies are pinned, TF32 is used where stated, memory is bounded."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from clips import write_clip
from runs import recipe
from torch import Tensor, nn

import epmvg
from epmvg.core.hardware import tf32
from epmvg.core.types import Batch, InputError
from epmvg.data.loader import GroundingLoader
from epmvg.data.registry import open_samples
from epmvg.distill.teacher import ClipTeacher
from epmvg.evaluation import evaluate
from epmvg.models.grounder import Grounder
from epmvg.training import cache_teacher, errors, loop
from epmvg.training.errors import explain_errors
from epmvg.training.run import Run

READS: set[Any] = {Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy, Tensor.nonzero, torch.nonzero}
READS |= {Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, torch.bincount, Tensor.bincount}
READS |= {Tensor.masked_select, torch.masked_select, Tensor.unique, torch.unique, torch.equal, torch.allclose}
"""Functions for which the host waits until a GPU has computed their result."""


class OnDevice(Tensor):
    """A tensor that stands for one on a GPU, as all that is computed from it; notes where the host reads it."""

    reads: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = func is Tensor.__getitem__ and any(
            isinstance(index, Tensor) and index.dtype == torch.bool
            for index in (args[1] if isinstance(args[1], tuple) else [args[1]])
        )
        if func in READS or masks or (func is Tensor.to and "cpu" in args):
            cls.reads += traceback.format_stack()[-3:-1]
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EPMVG_CACHE", str(tmp_path / "cache"))


EVERYTHING = [
    *("model.iou_head=true", "model.text_encoder={frozen: [all]}", "distill.dense_weight=1", "model.dropout=0.1"),
    *("train.max_grad_norm=1", "train.ema_decay=0.9", "train.gradient_accumulation_steps=2", "train.precision=bf16"),
]
PAPER = ["model.dense_head=false", "model.similarity=false", "distill.input=letterboxed", "train.precision=tf32"]
SWIN = ["model.name=tiny-swin", *PAPER, "distill.frozen=false", "train.gradient_checkpointing=true"]


@pytest.mark.parametrize("settings", [EVERYTHING, PAPER, SWIN], ids=["everything", "paper", "swin"])
def test_a_step_reads_the_device_only_for_a_log_a_validation_or_a_checkpoint(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str]
) -> None:
    """Embeddings of the teacher are cached before, as a phrase that is met for the first time has to be stored."""
    chosen = recipe(
        squares,
        *(f"distill.teacher={write_clip(tmp_path / 'teacher')}", "train.log_interval=3", "train.save_interval=100"),
        *("train.eval_interval=3", "data.augment={horizontal_flip: 0.5, translate: 1.0}", *settings),
    )
    if settings is EVERYTHING:
        squares.write_text(squares.read_text().replace('"phrase"', '"weight": 0.5, "phrase"'))
    if chosen.distill is not None and chosen.distill.frozen:
        cache_teacher(chosen)
    kinds: dict[bool, list[str]] = {True: [], False: []}
    real, move = Run.steps, Batch.to

    def steps(run: Run) -> Iterator[Iterator[tuple[Batch, tuple[float, float]]]]:
        for micro_batches in real(run):
            OnDevice.reads = kinds[run.is_read_step()]
            yield iter(list(micro_batches))

    def on_device(batch: Batch, device: torch.device) -> Batch:
        return move(batch, device)._with_tensors(lambda tensor: tensor.as_subclass(OnDevice))

    monkeypatch.setattr(Run, "steps", steps)
    monkeypatch.setattr(Batch, "to", on_device)
    epmvg.train(chosen, tmp_path / "run")
    assert kinds[True] and not kinds[False], "".join(kinds[False][:6])


def test_a_loss_that_is_not_finite_is_named_although_it_is_read_later(squares: Path, tmp_path: Path) -> None:
    class Broken(nn.Module):
        steps = 0

        def forward(self, x: Tensor) -> Tensor:
            self.steps += self.training
            out: Tensor = self.head(x)
            return out * float("nan") if self.steps == 3 else out

        def __init__(self, head: nn.Module) -> None:
            super().__init__()
            self.head = head

    def broken(run: Run) -> None:
        run.model.box_head = Broken(run.model.box_head)  # type: ignore[assignment]
        loop.fit(run)

    chosen = recipe(squares, "train.log_interval=5", "train.save_interval=100", "model.dense_head=false")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("epmvg.training.fit", broken)
        with pytest.raises(InputError, match=r"became nan at step 3 \(term l1, giou; images \d+\.png"):
            epmvg.train(chosen, tmp_path / "run")


def test_tf32_is_used_where_stated(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[tuple[str, bool]]] = {}

    def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            state = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
            seen.setdefault(name, set()).add(state)
            return function(*args)

        return call

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(loop, "check_finite", noting("step", errors.check_finite))
    monkeypatch.setattr(evaluate, "_rows", noting("evaluation", evaluate._rows))
    monkeypatch.setattr(ClipTeacher, "_pixels", noting("teacher", ClipTeacher._pixels))
    teacher = [f"distill.teacher={write_clip(tmp_path / 'teacher')}", "distill.input=letterboxed", "train.epochs=1"]
    strict = ("highest", False)
    for precision, expected in (("tf32", ("high", True)), ("fp32", strict)):
        epmvg.train(recipe(squares, *teacher, f"train.precision={precision}"), tmp_path / precision)
        assert seen == {"step": {expected}, "evaluation": {strict}, "teacher": {strict}}
        seen.clear()
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
    with pytest.raises(KeyError), tf32(True):
        raise KeyError
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_all_tensors_of_a_batch_are_pinned(squares: Path, tiny: Grounder, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[int] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(id(tensor))
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    batch = next(iter(GroundingLoader(open_samples(str(squares), split="train"), tiny.tokenize, image_size=64)))
    batch.cached["backbone_features"] = torch.zeros(2)
    batch.pin_memory()
    tensors = [*batch.inputs, batch.boxes, *batch.cached.values()]
    assert sorted(pinned) == sorted(map(id, tensors))


def test_batches_that_are_loaded_ahead_are_bounded(
    squares: Path, tiny: Grounder, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = open_samples(str(squares), split="train")

    def loader(**settings: Any) -> GroundingLoader:
        settings = {"image_size": 640, "batch_size": 64, "phrases_per_image": 1} | settings
        return GroundingLoader(samples, tiny.tokenize, **settings)

    def shared_memory(gigabytes: float) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=int(gigabytes * 1e9)))

    shared_memory(100)
    assert loader().prefetch_factor is None
    assert [loader(num_workers=workers).prefetch_factor for workers in (2, 4, 8, 64)] == [4, 3, 1, 1]
    assert loader(num_workers=8, shuffle=True, world_size=8).prefetch_factor == 1  # as one process with 64 pairs
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # of eight on four machines
    assert loader(num_workers=8, shuffle=True, world_size=8).prefetch_factor == 4
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert loader(num_workers=8, phrases_per_image=4).prefetch_factor == 4  # a fourth of the images
    shared_memory(3)
    assert [loader(num_workers=workers).prefetch_factor for workers in (1, 2, 8)] == [4, 2, 1]
    shared_memory(0.064)  # a container's, unless it is told otherwise
    with pytest.raises(
        InputError, match=r"num_workers=8 in each of 1 processes needs 2\.5 GB of shared memory.*has 0\.1\. Enlarge it"
    ):
        loader(num_workers=8)


@pytest.mark.parametrize(
    "message",
    [
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit.",
        "Caught RuntimeError in DataLoader worker process 0.\nRuntimeError: unable to write to file </torch_9_1_0>",
    ],
)
def test_exhausted_shared_memory_is_one_sentence(tmp_path: Path, message: str) -> None:
    chosen = epmvg.Recipe.load("refcoco")
    words = r"^Processes that load .*/dev/shm .*data\.num_workers=8[^\n]*$"
    with pytest.raises(InputError, match=words), explain_errors(chosen, tmp_path):
        raise RuntimeError(message)
