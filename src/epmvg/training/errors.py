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
        if any(words in str(error) for words in ("Bus error", "shared memory", "/torch_")):
            raise InputError(
                "Processes that load images ran out of shared memory. Enlarge /dev/shm (docker run --shm-size=8g) or "
                f"lower data.num_workers={data.num_workers}, and continue with --resume where a checkpoint was saved."
            ) from error
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
    """Check that the losses since the last check are finite, in steps that read the device anyway (`Run.is_read_step`).

    Raises:
        InputError: One is not; the message names the first step, its terms and images.
    """
    terms = {name: term.detach() for name, term in losses.terms.items()}
    run.unchecked.append((run.state.step + 1, losses.total.detach(), terms, batch.image_paths))
    if not run.is_read_step():
        return
    unchecked, run.unchecked = run.unchecked, []
    finite = torch.stack([total for _, total, _, _ in unchecked]).isfinite().tolist()
    if all(finite):
        return
    step, total, terms, paths = unchecked[finite.index(False)]
    wrong = ", ".join(name for name, term in terms.items() if not torch.isfinite(term)) or "total"
    images = ", ".join(sorted({path.name for path in paths})[:3])
    raise InputError(
        f"The loss became {total.item()} at step {step} (term {wrong}; images {images}, ...). "
        f"To continue, {restart_advice(run.folder)}, with a lower train.lr or train.max_grad_norm=1."
    )
