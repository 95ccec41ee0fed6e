"""Progress reporting: bars on a terminal, plain lines when piped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from epmvg.core.types import Progress as ProgressCallback
from epmvg.core.types import Report


@contextmanager
def progress_bar(console: Console, title: str) -> Iterator[ProgressCallback]:
    """Show a bar on a terminal; yield a function to call with (done, total)."""
    with _new_bar(console) as bar:
        task = bar.add_task(title, total=None, note="")
        yield lambda done, total: bar.update(task, completed=done, total=total)


def progress_rows(report: Report, name: str) -> ProgressCallback:
    """Return a function that reports (done, total) as rows of progress."""
    return lambda done, total: report({"event": "progress", "name": name, "done": done, "total": total})


class TrainingProgress:
    """Report the rows of metrics of a training; a context manager.

    Steps are a bar with loss terms and images/s, when piped ten lines in all; every other event is a line.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = _new_bar(console)
        self.tasks: dict[str, TaskID] = {}
        self.tenths: dict[str, int] = {}  # of the steps that are printed, by training

    def __enter__(self) -> TrainingProgress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, row: dict[str, Any]) -> None:
        """Report one row."""
        prefix = f"{row['run']}: " if "run" in row else ""
        if row["event"] == "step":
            self._report_step(row, prefix)
        elif row["event"] == "progress":
            self._update_bar(f"{prefix}{row['name']}", row["done"], row["total"])
        elif text := _describe(row):
            self._print(prefix + text)

    def _report_step(self, row: dict[str, Any], prefix: str) -> None:
        step, steps = row["step"], row["steps"]
        terms = ", ".join(f"{name} {value:.2f}" for name, value in row["loss"].items() if name != "total")
        note = f"loss {row['loss']['total']:.3f} ({terms}), {row['images_per_s']:.1f} images/s"
        self._update_bar(f"{prefix}training", step, steps, note)
        if not self.console.is_terminal and step * 10 // steps != self.tenths.get(prefix, 0):
            self.tenths[prefix] = step * 10 // steps
            self._print(f"{prefix}step {step}/{steps}: {note}")

    def _print(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False, emoji=False, highlight=False)

    def _update_bar(self, title: str, done: int, total: int, note: str = "") -> None:
        if title not in self.tasks:
            self.tasks[title] = self.bar.add_task(title, note="")
        self.bar.update(self.tasks[title], completed=done, total=total, note=note)


def _new_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        disable=not console.is_terminal,
    )


def _describe(row: dict[str, Any]) -> str:
    """Return the line for an event, "" where it has none."""
    match row["event"]:
        case "begin":
            processes = f", {row['processes']} processes" if row["processes"] > 1 else ""
            position = f"resumed at step {row['step']} of {row['steps']}" if row["step"] else f"{row['steps']} steps"
            return (
                f"{row['data']}: training on {row['train']}, validation on {row['val']}; model {row['start']}; "
                f"device {row['device']}{processes}; {position}; run folder {row['folder']}"
            )
        case "evaluate":
            sample = f", a sample of {row['sample_of']:,}" if "sample_of" in row else ""
            return (
                f"{row['data']} {row['split']} after {row['phrases']:,} phrases, {row['seconds']:.0f} s: "
                f"Acc@0.5 {row['acc50']:.3f}, mean IoU {row['miou']:.3f} ({row['n']:,} phrases{sample})"
            )
        case "end":
            return (
                f"best on {row['split']}: Acc@0.5 {row['best']:.3f} at step {row['best_step']} of {row['steps']}, "
                f"kept in {row['folder']}/model.safetensors"
            )
        case "skipped":
            return f"{row['why'].rstrip('.')}."
        case "message":
            return str(row["text"])
    return ""
