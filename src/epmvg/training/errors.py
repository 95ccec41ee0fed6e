"""Errors that end a training, each as one sentence that names the remedy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch

from epmvg.config.settings import Recipe
from epmvg.core.distributed import broadcast, gather, is_lost_process
from epmvg.core.files import atomic_write, disk_errors
from epmvg.core.hardware import is_out_of_memory
from epmvg.core.types import Batch, InputError
from epmvg.data.readers.annotations import to_annotations
from epmvg.data.readers.jsonl import json_line
from epmvg.distill.losses import Losses
from epmvg.training.folder import restart_advice
from epmvg.training.run import Run


@contextmanager
def raise_on_all_processes() -> Iterator[None]:
    """Raise an `InputError` of any process on all of them; the block must not wait for other processes."""
    error: InputError | None = None
    try:
        yield
    except InputError as raised:
        error = raised
    messages = broadcast(gather(None if error is None else str(error)))
    if error is not None:
        raise error
    message = next((text for text in messages if text is not None), None)
    if message is not None:
        raise InputError(message)


@contextmanager
def explain_errors(recipe: Recipe, folder: Path) -> Iterator[None]:
    """Explain what to do when memory is exhausted, or when a worker or another process has ended."""
    data, settings = recipe.data, recipe.train
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if "DataLoader worker" in str(error):
            raise InputError(
                "A process that opens images was killed, perhaps for memory: lower "
                f"data.num_workers={data.num_workers}, and continue with --resume where a checkpoint was saved."
            ) from error
        if isinstance(error, RuntimeError) and is_lost_process(error):
            raise InputError("Another process of this training ended: continue with --resume.") from error
        if not is_out_of_memory(error):
            raise
        checkpointing = "set train.gradient_checkpointing=true and continue with --resume, or "
        phrases = f", lower data.phrases_per_image={data.phrases_per_image}" if data.phrases_per_image > 1 else ""
        raise InputError(
            f"Out of memory: {'' if settings.gradient_checkpointing else checkpointing}{restart_advice(folder)}, and "
            f"lower data.batch_size={data.batch_size} (and raise train.gradient_accumulation_steps="
            f"{settings.gradient_accumulation_steps} as much){phrases} or set a smaller model.image_size."
        ) from error


def check_finite(run: Run, batch: Batch, losses: Losses) -> None:
    """Check that the loss is finite; otherwise save the batch as tensors and as a data set.

    Raises:
        InputError: It is not; the message names the term, images and files.
    """
    if torch.isfinite(losses.total):
        return
    step = run.state.step + 1
    file = run.folder / f"batch-{step}-{run.accelerator.process_index}.safetensors"
    with disk_errors(file):
        run.folder.mkdir(parents=True, exist_ok=True)  # on a machine with a disk of its own it is not there yet
    names = ("images", "image_mask", "tokens", "token_mask", "image_index", "boxes")
    tensors = {name: getattr(batch, name).contiguous() for name in names} | batch.cached
    terms = {name: str(term.item()) for name, term in losses.terms.items()}
    with atomic_write(file) as temporary:
        safetensors.torch.save_file(tensors, temporary, {"step": str(step), "loss": json.dumps(terms)})
    with atomic_write(file.with_suffix(".jsonl")) as temporary, temporary.open("wb") as out:
        out.writelines(json_line(row) for row in to_annotations(batch.samples, run.folder))
    wrong = ", ".join(name for name, term in losses.terms.items() if not torch.isfinite(term)) or "total"
    images = ", ".join(sorted({sample.image.name for sample in batch.samples})[:3])
    finite = all(bool(torch.isfinite(parameter).all()) for parameter in run.model.parameters())
    raise InputError(
        f"The loss became {losses.total.item()} at step {step} (term {wrong}; images {images}, ...): the batch is in "
        f"{file} and .jsonl; {'' if finite else 'weights contained NaN or Inf before; '}{restart_advice(run.folder)}, "
        "with a lower train.lr or train.max_grad_norm=1."
    )
