"""Training: a student learns boxes, and a teacher's vectors where there is one.

The folder it leaves is enough for everything that follows: config.yaml, model.yaml, model.safetensors (best on val),
tokenizer/, metrics.jsonl, samples.json, teacher.json (which CLIP taught it), predictions, and state/ for --resume.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from epmvg.config.settings import Recipe
from epmvg.core.files import write_text
from epmvg.training.agreement import agreed
from epmvg.training.checkpoint import restore, save_samples
from epmvg.training.faults import advising, ending_together
from epmvg.training.folder import LOCK, claimed, located
from epmvg.training.loop import fit
from epmvg.training.processes import join
from epmvg.training.run import Report, Run
from epmvg.training.setup import prepare_run
from epmvg.training.stopping import Stopped, heeding
from epmvg.training.teacher import cache_teacher, write_teacher

__all__ = ["Report", "Stopped", "cache_teacher", "train"]


def train(
    recipe: Recipe, out: Path | str, *, resume: bool = False, device: str = "auto", report: Report | None = None
) -> Path:
    """Train a student by a recipe and return its folder.

    In the main thread SIGINT, SIGTERM and SIGUSR1, where the caller handles them no other way, end it after the step
    that is being taken, whose state is saved; a second signal ends it at once.

    Args:
        recipe: what to train, on what and how. Paths in it are kept as absolute paths.
        out: the run's folder; it must not hold another run.
        resume: go on from the last saved step of `out`, with the same samples in the same order. Settings that do not
            change what is learned (`training.folder.FREE`) may differ from those it was started with.
        device: "auto" (CUDA, then MPS, then CPU) or a device of torch; under a launcher each process has its own GPU.
        report: called with each row of metrics as it is written.

    Raises:
        InputError: unusable settings, data or folder.
        Stopped: a KeyboardInterrupt; a signal ended the training, which `resume` goes on with.
    """
    folder, recipe = Path(out), located(recipe)
    accelerator = join(recipe.train, device)
    tell = report if report is not None and accelerator.is_main_process else _say_nothing
    with ExitStack() as held, ending_together():
        with agreed():
            if accelerator.is_main_process:
                held.enter_context(claimed(folder, recipe, resume))
        try:
            with advising(recipe, folder):
                run = prepare_run(recipe, folder, accelerator, tell, resume=resume)
        except BaseException:
            if not resume and accelerator.is_main_process:  # leave no folder behind that would refuse the next try
                _give_up(folder)
            raise
        with heeding(run.stop, accelerator.num_processes), advising(recipe, folder):
            if resume:
                restore(run)
            save_samples(run)
            if accelerator.is_main_process:
                write_text(folder / "config.yaml", recipe.dump())
                if run.lesson is not None:
                    write_teacher(run.lesson.clip, folder)
            tell(_beginning(run))
            fit(run)
            tell(_end(run))
    return folder


def _give_up(folder: Path) -> None:
    for name in ("config.yaml", LOCK):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # something hidden was there before
        folder.rmdir()


def _beginning(run: Run) -> dict[str, Any]:
    """Return what a training says of itself before its first step."""
    recipe = run.recipe
    model = recipe.model
    start = f"{model.name} from {model.init_from or ('pretrained weights' if model.pretrained else 'random weights')}"
    row = {"event": "begin", "data": recipe.data.name, "start": start, "step": run.position.step}
    samples = {name: str(samples) for name, samples in run.samples.items()}
    device = str(run.accelerator.device)
    processes = run.accelerator.num_processes
    return row | samples | {"steps": run.steps, "device": device, "processes": processes, "folder": str(run.folder)}


def _end(run: Run) -> dict[str, Any]:
    """Return what came of a training."""
    position = run.position
    row = {"event": "end", "best": position.best, "best_step": position.best_step, "steps": position.step}
    return row | {"split": run.recipe.data.val_split, "folder": str(run.folder)}


def _say_nothing(row: dict[str, Any]) -> None:
    pass
