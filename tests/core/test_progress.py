"""What long work says: a bar that moves on a terminal; piped, ten lines a training and no letter of a bar."""

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
    return {"event": "step", "who": who, "step": number, "steps": STEPS, "loss": loss, "images_per_s": 12.5}


@pytest.mark.parametrize("terminal", [True, False])
def test_two_trainings_side_by_side(terminal: bool) -> None:
    out = io.StringIO()
    with TrainingProgress(Console(file=out, force_terminal=terminal, width=200)) as tell:
        for number in range(1, STEPS + 1):
            for who in ("plain", "distilled"):
                tell(step(number, who))
        tell({"event": "store", "name": "maps", "done": 3, "total": 3})
        tell({"event": "skipped", "why": "Pictures left out so far: 1"})
        tell({"event": "say", "text": "3. Drawing"})
        score = {"event": "evaluate", "data": "mine", "split": "val", "phrases": 1234, "seconds": 9.6, "n": 40}
        tell(score | {"acc50": 0.25, "miou": 0.5})
    said = out.getvalue()
    lines = [line for line in said.splitlines() if re.match(r"(plain|distilled): step ", line)]
    if terminal:
        assert not lines and "37/37" in said and "3/3" in said and "\x1b[" in said
        return
    for who in ("plain", "distilled"):
        told = [int(line.split()[2].split("/")[0]) for line in lines if line.startswith(who)]
        assert told == sorted(set(told)) and len(told) == 10 and told[-1] == STEPS
    assert lines[-1] == "distilled: step 37/37: loss 0.054 (l1 0.01, giou 0.04), 12.5 images/s"
    assert said.splitlines()[len(lines) :] == [
        "Pictures left out so far: 1.",
        "3. Drawing",
        "mine val after 1,234 phrases, 10 s: Acc@0.5 0.250, mean IoU 0.500 (40 phrases)",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_text_of_users_and_files_is_printed_as_it_stands(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    texts = ["a dog [/x]", "[red]apple[/red]", "photos/[old]/1.jpg", ":dog:"]
    console = Console(file=out, force_terminal=terminal, width=200, markup=False, emoji=False, highlight=False)
    monkeypatch.setattr(cli_console, "console", console)
    cli_console.print_table(texts[0], [{texts[1]: texts[2], "b": texts[3]}])
    with TrainingProgress(console) as tell:
        tell({"event": "skipped", "why": f"{texts[0]} {texts[1]} {texts[2]} {texts[3]}"})
        tell(step(STEPS, texts[0]) | {"loss": {"total": 1.0, texts[1]: 1.0}})
    for text in texts:
        assert out.getvalue().count(text) >= 2
    for shared in (cli_console.log_console, cli_console.error_console):
        assert not shared._markup and not shared._emoji


@pytest.mark.parametrize("terminal", [True, False])
def test_counting_is_seen_on_a_terminal_only(terminal: bool) -> None:
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
