"""Training: `train` writes a run's folder from a recipe, with or without a teacher.

The folder contains config.yaml, model.yaml, model.safetensors (best on the validation split), tokenizer/,
metrics.jsonl, samples.json, teacher.json (which CLIP was the teacher), predictions, and checkpoint/ for --resume.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from epmvg.config.settings import Recipe
from epmvg.core.files import write_text
from epmvg.core.hardware import tf32
from epmvg.core.types import Report
from epmvg.training.checkpoint import restore, save_samples
from epmvg.training.errors import explain_errors, raise_on_all_processes
from epmvg.training.folder import lock_folder, remove_folder, with_absolute_paths
from epmvg.training.loop import fit
from epmvg.training.processes import join_processes
from epmvg.training.run import Run
from epmvg.training.setup import prepare_run
from epmvg.training.signals import TrainingStopped, handle_signals
from epmvg.training.teacher import cache_teacher, write_description

__all__ = ["Report", "TrainingStopped", "cache_teacher", "train"]


def train(
    recipe: Recipe, out: Path | str, *, resume: bool = False, device: str = "auto", report: Report | None = None
) -> Path:
    """Train a student by a recipe and return its folder.

    In the main thread SIGINT, SIGTERM and SIGUSR1, where the caller has no handlers for them, end it after the current
    step, with a checkpoint saved; a second signal ends it at once.

    Args:
        recipe: Model, data, teacher and optimization. Paths in it are saved as absolute paths.
        out: The run's folder; it must not contain another run.
        resume: Continue from the last checkpoint of `out`, with the same samples in the same order. Settings that do
            not change the weights (`training.folder.RESUMABLE`) may differ from those it was started with.
        device: "auto" (CUDA, then MPS, then CPU) or a device of torch; under a launcher each process has its own GPU.
        report: Called with each row of metrics as it is written.

    Raises:
        InputError: Unusable settings, data or folder.
        TrainingStopped: A KeyboardInterrupt; a signal ended the training, which `resume` continues.
    """
    folder, recipe = Path(out), with_absolute_paths(recipe)
    accelerator = join_processes(device)
    if report is None or not accelerator.is_main_process:
        report = _ignore
    with ExitStack() as stack, explain_errors(recipe, folder):
        with raise_on_all_processes():
            if accelerator.is_main_process:
                stack.enter_context(lock_folder(folder, recipe, resume))
        try:
            run = prepare_run(recipe, folder, accelerator, report, resume=resume)
        except BaseException:
            if not resume and accelerator.is_main_process:
                remove_folder(folder)
            raise
        with handle_signals(run.stop, accelerator.num_processes):
            if resume:
                restore(run)
            save_samples(run)
            if accelerator.is_main_process:
                write_text(folder / "config.yaml", recipe.dump())
                if run.teacher is not None:
                    write_description(run.teacher.clip, folder)
            report(_begin_row(run))
            with tf32(recipe.train.precision == "tf32"):
                fit(run)
            report(_end_row(run))
    return folder


def _begin_row(run: Run) -> dict[str, Any]:
    recipe, model = run.recipe, run.recipe.model
    weights = model.init_from or ("pretrained weights" if model.pretrained else "random weights")
    samples = {name: str(samples) for name, samples in run.samples.items()}
    return {
        "event": "begin",
        "data": recipe.data.name,
        "start": f"{model.name} from {weights}",
        "step": run.state.step,
        **samples,
        "steps": run.count.total,
        "device": str(run.accelerator.device),
        "processes": run.accelerator.num_processes,
        "folder": str(run.folder),
    }


def _end_row(run: Run) -> dict[str, Any]:
    state = run.state
    row = {"event": "end", "best": state.best, "best_step": state.best_step, "steps": state.step}
    return row | {"split": run.recipe.data.val_split, "folder": str(run.folder)}


def _ignore(row: dict[str, Any]) -> None:
    pass
