"""Errors that end a training, each with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from epmvg.config.settings import Recipe
from epmvg.core.distributed import broadcast, gather, is_lost_process
from epmvg.core.hardware import is_out_of_memory
from epmvg.core.types import Batch, InputError
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
                "A process that opens images was killed, perhaps for lack of memory. Lower "
                f"data.num_workers={data.num_workers}, and continue with --resume where a checkpoint was saved."
            ) from error
        if isinstance(error, RuntimeError) and is_lost_process(error):
            raise InputError("Another process of this training ended. Continue with --resume.") from error
        if not is_out_of_memory(error):
            raise
        checkpointing = "Set train.gradient_checkpointing=true and continue with --resume, or "
        phrases = f", lower data.phrases_per_image={data.phrases_per_image}" if data.phrases_per_image > 1 else ""
        raise InputError(
            f"Out of memory. {'To continue, ' if settings.gradient_checkpointing else checkpointing}"
            f"{restart_advice(folder)}, and "
            f"lower data.batch_size={data.batch_size} (and raise train.gradient_accumulation_steps="
            f"{settings.gradient_accumulation_steps} as much){phrases} or set a smaller model.image_size."
        ) from error


def check_finite(run: Run, batch: Batch, losses: Losses) -> None:
    """Check that the loss is finite.

    Raises:
        InputError: It is not; the message names the term and images.
    """
    if torch.isfinite(losses.total):
        return
    terms = ", ".join(name for name, term in losses.terms.items() if not torch.isfinite(term)) or "total"
    images = ", ".join(sorted({sample.image.name for sample in batch.samples})[:3])
    finite = all(bool(torch.isfinite(parameter).all()) for parameter in run.model.parameters())
    weights = "" if finite else "; weights contained NaN or Inf before"
    raise InputError(
        f"The loss became {losses.total.item()} at step {run.state.step + 1} (term {terms}; images {images}, ..."
        f"{weights}). "
        f"To continue, {restart_advice(run.folder)}, with a lower train.lr or train.max_grad_norm=1."
    )
