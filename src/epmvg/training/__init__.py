"""Training: a student learns boxes, and a teacher's vectors where there is one.

The folder it leaves is enough for everything that follows: config.yaml, model.yaml, model.safetensors (best on val),
tokenizer/, metrics.jsonl, predictions, teacher.json (which CLIP taught it), and state/ for --resume.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from epmvg.config import Recipe
from epmvg.training.faults import advising, stopping_together
from epmvg.training.folder import LOCK, claimed
from epmvg.training.lessons import cache_teacher, write_teacher
from epmvg.training.loop import fit
from epmvg.training.prepare import prepare_run
from epmvg.training.run import Report
from epmvg.training.spread import join
from epmvg.training.state import restore
from epmvg.types import InputError

__all__ = ["Report", "cache_teacher", "train"]


def train(recipe: Recipe, out: Path | str, *, resume: bool = False, report: Report | None = None) -> Path:
    """Train a student by a recipe and return its folder.

    Args:
        recipe: what to train, on what and how.
        out: the run's folder; it must not hold another run.
        resume: go on from the last saved step of `out`, with the same data in the same order.
        report: called with each row of metrics as it is written.

    Raises:
        InputError: unusable settings, data or folder.
    """
    folder = Path(out)
    accelerator = join(recipe.train)
    with ExitStack() as held:
        if accelerator.is_main_process:
            held.enter_context(claimed(folder, recipe, resume))
        accelerator.wait_for_everyone()
        tell = report if report is not None and accelerator.is_main_process else _say_nothing
        try:
            with advising(recipe):
                run = prepare_run(recipe, folder, accelerator, tell)
        except InputError:
            if not resume and accelerator.is_main_process:  # leave no folder behind that would refuse the next try
                (folder / "config.yaml").unlink()
                (folder / LOCK).unlink()
                with suppress(OSError):  # something hidden was there before
                    folder.rmdir()
            raise
        with stopping_together(accelerator.num_processes), advising(recipe):
            if run.lesson is not None and accelerator.is_main_process:
                write_teacher(run.lesson.clip, folder)
            if resume:
                restore(run)
            fit(run)
    return folder


def _say_nothing(row: dict[str, Any]) -> None:
    pass
