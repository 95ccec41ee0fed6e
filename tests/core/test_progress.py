"""Progress: bars on a terminal; piped, ten lines per training and no bar."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from epmvg.cli import console as cli_console
from epmvg.core.progress import TrainingProgress, progress_bar

STEPS = 37


def step(number: int, who: str) -> dict[str, Any]:
    loss = {"total": 2.0 / number, "l1": 0.5 / number, "giou": 1.5 / number}
    return {"event": "step", "run": who, "step": number, "steps": STEPS, "loss": loss, "images_per_s": 12.5}


@pytest.mark.parametrize("terminal", [True, False])
def test_two_trainings_side_by_side(terminal: bool) -> None:
    out = io.StringIO()
    with TrainingProgress(Console(file=out, force_terminal=terminal, width=200)) as report:
        for number in range(1, STEPS + 1):
            for who in ("plain", "distilled"):
                report(step(number, who))
        report({"event": "progress", "name": "features", "done": 3, "total": 3})
        report({"event": "skipped", "why": "Images skipped so far: 1"})
        report({"event": "message", "text": "3. Drawing"})
        score = {"event": "evaluate", "data": "mine", "split": "val", "phrases": 1234, "seconds": 9.6, "n": 40}
        report(score | {"acc50": 0.25, "miou": 0.5})
    message = out.getvalue()
    lines = [line for line in message.splitlines() if re.match(r"(plain|distilled): step ", line)]
    if terminal:
        assert not lines and "37/37" in message and "3/3" in message and "\x1b[" in message
        return
    for who in ("plain", "distilled"):
        shown = [int(line.split()[2].split("/")[0]) for line in lines if line.startswith(who)]
        assert shown == sorted(set(shown)) and len(shown) == 10 and shown[-1] == STEPS
    assert lines[-1] == "distilled: step 37/37: loss 0.054 (l1 0.01, giou 0.04), 12.5 images/s"
    assert message.splitlines()[len(lines) :] == [
        "Images skipped so far: 1.",
        "3. Drawing",
        "mine val after 1,234 phrases, 10 s: Acc@0.5 0.250, mean IoU 0.500 (40 phrases)",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_text_is_printed_without_markup(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    texts = ["a dog [/x]", "[red]apple[/red]", "photos/[old]/1.jpg", ":dog:"]
    console = Console(file=out, force_terminal=terminal, width=200, markup=False, emoji=False, highlight=False)
    monkeypatch.setattr(cli_console, "console", console)
    cli_console.print_table(texts[0], [{texts[1]: texts[2], "b": texts[3]}])
    with TrainingProgress(console) as report:
        report({"event": "skipped", "why": f"{texts[0]} {texts[1]} {texts[2]} {texts[3]}"})
        report(step(STEPS, texts[0]) | {"loss": {"total": 1.0, texts[1]: 1.0}})
    for text in texts:
        assert out.getvalue().count(text) >= 2
    for shared in (cli_console.log_console, cli_console.error_console):
        assert not shared._markup and not shared._emoji


@pytest.mark.parametrize("terminal", [True, False])
def test_a_progress_bar_is_for_terminals_only(terminal: bool) -> None:
    out = io.StringIO()
    with progress_bar(Console(file=out, force_terminal=terminal, width=100), "Scoring") as count:
        for done in range(6):
            count(done, 5)
    assert ("Scoring" in out.getvalue() and "5/5" in out.getvalue()) == terminal and bool(out.getvalue()) == terminal


def test_the_begin_and_the_end_of_a_training_are_a_line_each() -> None:
    out = io.StringIO()
    begin = {
        "event": "begin",
        "data": "scenes",
        "train": "1 image",
        "val": "2 images",
        "start": "mini",
        "device": "cpu",
    }
    end = {"event": "end", "split": "val", "best": 0.5, "best_step": 3, "steps": 9, "folder": "runs/a"}
    with TrainingProgress(Console(file=out, width=300)) as progress:
        progress(begin | {"processes": 2, "step": 4, "steps": 9, "folder": "runs/a"})
        progress(begin | {"processes": 1, "step": 0, "steps": 9, "folder": "runs/a"})
        progress(end)
        progress({"event": "other"})
    resumed, started, best = out.getvalue().splitlines()
    assert "2 processes; resumed at step 4 of 9" in resumed and "device cpu; 9 steps" in started
    assert best.startswith("best on val: Acc@0.5 0.500 at step 3 of 9")
