"""What ends a training early, in sentences that say what helps."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import safetensors.torch
import torch

from epmvg.config import Recipe
from epmvg.data.jsonl import json_line, rows_of
from epmvg.distill.losses import Loss
from epmvg.hardware import is_out_of_memory
from epmvg.processes import is_lost_process
from epmvg.training.run import Run
from epmvg.types import Batch, InputError
from epmvg.writing import naming, replacing


@contextmanager
def advising(recipe: Recipe) -> Iterator[None]:
    """Where memory runs out, say what takes less of it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        data, settings = recipe.data, recipe.train
        if "DataLoader worker" in str(error):
            raise InputError(
                f"A process that opens pictures was killed, perhaps for memory: lower data.workers={data.workers}."
            ) from error
        if not is_out_of_memory(error):
            raise
        cures = [f"lower data.images={data.images} (and raise train.accumulate={settings.accumulate} as much)"]
        cures += [f"lower data.phrases={data.phrases}"] if data.phrases > 1 else []
        cures += [] if settings.checkpoint_layers else ["set train.checkpoint_layers=true"]
        raise InputError(f"Memory ran out: {', '.join(cures)}, or set a smaller model.canvas.") from error


@contextmanager
def stopping_together(processes: int) -> Iterator[None]:
    """Say it plainly where another process of the training ended, or the launcher stops this one because of that."""

    def stop(*_: object) -> None:
        raise InputError("Another process of this training ended, or it was told to stop: go on with --resume.")

    if processes == 1:
        yield
        return
    heard = threading.current_thread() is threading.main_thread()  # no other thread may listen to signals
    before = signal.signal(signal.SIGTERM, stop) if heard else None
    try:
        yield
    except RuntimeError as error:
        if is_lost_process(error):
            raise InputError("Another process of this training ended: go on with --resume.") from error
        raise
    finally:
        if heard:
            signal.signal(signal.SIGTERM, before)


def keep_batch(run: Run, batch: Batch, loss: Loss) -> str:
    """Keep the batch whose loss is no number, as it was seen and as rows of a data set; say which it is and where."""
    step = run.position.step + 1
    file = run.folder / f"batch-{step}-{run.accelerator.process_index}.safetensors"
    with naming(file):
        run.folder.mkdir(parents=True, exist_ok=True)  # on a machine with a disk of its own it is not there yet
    names = ("image", "pad", "tokens", "token_pad", "owner", "box")
    seen = {name: getattr(batch, name).contiguous() for name in names} | batch.stored
    terms = {name: str(term.item()) for name, term in loss.terms.items()}
    with replacing(file) as temporary:
        safetensors.torch.save_file(seen, temporary, {"step": str(step), "loss": json.dumps(terms)})
    with replacing(file.with_suffix(".jsonl")) as temporary, temporary.open("wb") as out:
        out.writelines(json_line(row) for row in rows_of(batch.records, run.folder))
    wrong = ", ".join(name for name, term in loss.terms.items() if not torch.isfinite(term)) or "total"
    images = ", ".join(sorted({record.image.name for record in batch.records})[:3])
    whole = all(bool(torch.isfinite(parameter).all()) for parameter in run.student.parameters())
    cure = "lower train.lr or set train.clip=1" if whole else "weights were no numbers before: lower train.lr"
    return (
        f"The loss became {loss.total.item()} at step {step} (term {wrong}; images {images}, ...): "
        f"the batch is in {file} and .jsonl; {cure}."
    )
