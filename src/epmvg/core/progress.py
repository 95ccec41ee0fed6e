"""What long work says while it goes on: progress bars on a terminal, plain lines when piped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from epmvg.core.types import Progress as Count


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        disable=not console.is_terminal,
    )


@contextmanager
def progress_bar(console: Console, title: str) -> Iterator[Count]:
    """Show a bar for work that calls back with (done, total)."""
    with _bar(console) as bar:
        task = bar.add_task(title, total=None, note="")

        def count(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield count


class TrainingProgress:
    """Tell a training's rows of metrics: a bar with loss terms and images/s, a line for each score."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = _bar(console)
        self.tasks: dict[str, TaskID] = {}
        self.said: dict[str, int] = {}

    def __enter__(self) -> TrainingProgress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def __call__(self, row: dict[str, Any]) -> None:
        event = row["event"]
        who = f"{row['who']}: " if "who" in row else ""
        if event == "step":
            loss = ", ".join(f"{name} {value:.2f}" for name, value in row["loss"].items() if name != "total")
            note = f"loss {row['loss']['total']:.3f} ({loss}), {row['images_per_s']:.1f} images/s"
            self._advance(f"{who}learning", row["step"], row["steps"], note)
            if not self.console.is_terminal and row["step"] * 10 // row["steps"] != self.said.get(who, 0):
                self.said[who] = row["step"] * 10 // row["steps"]
                self._say(f"{who}step {row['step']}/{row['steps']}: {note}")
        elif event == "store":
            self._advance(f"{who}{row['name']}", row["done"], row["total"], "")
        elif event == "evaluate":
            sample = f" of {row['sample_of']:,}, a sample" if "sample_of" in row else ""
            self._say(
                f"{who}{row['data']} {row['split']} after {row['phrases']:,} phrases, {row['seconds']:.0f} s: "
                f"Acc@0.5 {row['acc50']:.3f}, mean IoU {row['miou']:.3f} ({row['n']:,} phrases{sample})"
            )
        elif event == "skipped":
            self._say(f"{who}{row['why'].rstrip('.')}.")
        elif event == "begin":
            self._say(who + _beginning(row))
        elif event == "end":
            self._say(
                f"{who}best on {row['split']}: Acc@0.5 {row['best']:.3f} at step {row['best_step']} of {row['steps']}, "
                f"kept in {row['folder']}/model.safetensors"
            )
        elif event == "say":
            self._say(row["text"])

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False, emoji=False, highlight=False)

    def _advance(self, title: str, done: int, total: int, note: str) -> None:
        if title not in self.tasks:
            self.tasks[title] = self.bar.add_task(title, note="")
        self.bar.update(self.tasks[title], completed=done, total=total, note=note)


def _beginning(row: dict[str, Any]) -> str:
    """Say what a training learns from, starts from, runs on and writes to."""
    processes = f", {row['processes']} processes" if row["processes"] > 1 else ""
    where = f"going on at step {row['step']} of {row['steps']}" if row["step"] else f"{row['steps']} steps"
    return (
        f"{row['data']}: training on {row['train']}, validation on {row['val']}; model {row['start']}; "
        f"device {row['device']}{processes}; {where}; the run goes to {row['folder']}"
    )
