"""What ends a training early, in sentences that say what helps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch

from epmvg.config.settings import Recipe
from epmvg.core.distributed import is_lost_process
from epmvg.core.files import atomic_write, disk_errors
from epmvg.core.hardware import is_out_of_memory
from epmvg.core.types import Batch, InputError
from epmvg.data.readers.annotations import to_annotations
from epmvg.data.readers.jsonl import json_line
from epmvg.distill.losses import Loss
from epmvg.training.folder import another_run
from epmvg.training.run import Run


@contextmanager
def advising(recipe: Recipe, folder: Path) -> Iterator[None]:
    """Where memory runs out, say what takes less of it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        data, settings = recipe.data, recipe.train
        if "DataLoader worker" in str(error):
            raise InputError(
                f"A process that opens images was killed, perhaps for memory: "
                f"lower data.num_workers={data.num_workers}, and go on with --resume where a state was saved."
            ) from error
        if not is_out_of_memory(error):
            raise
        same = (
            ""
            if settings.gradient_checkpointing
            else "set train.gradient_checkpointing=true and go on with --resume, or "
        )
        cure = (
            f"lower data.batch_size={data.batch_size} (and raise "
            f"train.gradient_accumulation_steps={settings.gradient_accumulation_steps} as much)"
        )
        raise InputError(
            f"Out of memory: {same}{another_run(folder)}, and {cure} or set a smaller model.image_size."
        ) from error


@contextmanager
def ending_together() -> Iterator[None]:
    """Say so where another process of the training ended."""
    try:
        yield
    except RuntimeError as error:
        if is_lost_process(error):
            raise InputError("Another process of this training ended: go on with --resume.") from error
        raise


def keep_batch(run: Run, batch: Batch, loss: Loss) -> str:
    """Keep the batch whose loss is no number, as it was seen and as rows of a data set; say which it is and where."""
    step = run.position.step + 1
    file = run.folder / f"batch-{step}-{run.accelerator.process_index}.safetensors"
    with disk_errors(file):
        run.folder.mkdir(parents=True, exist_ok=True)  # on a machine with a disk of its own it is not there yet
    names = ("image", "image_mask", "tokens", "token_mask", "image_index", "box")
    seen = {name: getattr(batch, name).contiguous() for name in names} | batch.cached
    terms = {name: str(term.item()) for name, term in loss.terms.items()}
    with atomic_write(file) as temporary:
        safetensors.torch.save_file(seen, temporary, {"step": str(step), "loss": json.dumps(terms)})
    with atomic_write(file.with_suffix(".jsonl")) as temporary, temporary.open("wb") as out:
        out.writelines(json_line(row) for row in to_annotations(batch.samples, run.folder))
    wrong = ", ".join(name for name, term in loss.terms.items() if not torch.isfinite(term)) or "total"
    images = ", ".join(sorted({record.image.name for record in batch.samples})[:3])
    whole = all(bool(torch.isfinite(parameter).all()) for parameter in run.student.parameters())
    cure = "" if whole else "weights held NaN or infinity before; "
    return (
        f"The loss became {loss.total.item()} at step {step} (term {wrong}; images {images}, ...): "
        f"the batch is in {file} and .jsonl; {cure}{another_run(run.folder)}, "
        "with a lower train.lr or train.max_grad_norm=1."
    )
