"""The command line: verbs, each a few lines that call the library; what a verb needs is imported inside it."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from io import TextIOWrapper
from typing import Annotated, NoReturn

import typer

from epmvg.cli import ask, datasets, give, judge, learn, predict, screen
from epmvg.core.distributed import rank_and_world_size
from epmvg.core.types import InputError
from epmvg.core.version import __version__

app = typer.Typer(
    help="Visual grounding: an image and a phrase go in, the box of that thing comes out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
VERBS: tuple[Callable[..., None], ...] = (
    *(learn.demo, learn.train, judge.evaluate, judge.score, judge.calibrate, give.publish, predict.predict),
    *(judge.report, learn.reproduce, learn.list_, give.convert, give.export, ask.serve, ask.bench),
)
"""In the order in which help names them."""

GROUPS: dict[str, tuple[str, tuple[Callable[..., None], ...]]] = {
    "teacher": ("Make a teacher of your own.", (learn.teacher_train, learn.teacher_cache)),
    "data": (
        "Look into data sets, examine them, and turn one format into another.",
        (datasets.data_stats, datasets.data_convert, datasets.data_split, datasets.data_check),
    ),
}

for verb in VERBS:
    app.command(verb.__name__.rstrip("_"))(verb)
for name, (about, verbs) in GROUPS.items():
    group = typer.Typer(help=about, no_args_is_help=True)
    for verb in verbs:
        group.command(verb.__name__.removeprefix(f"{name}_"))(verb)
    app.add_typer(group, name=name)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; unusable input is one sentence and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a phrase may hold letters that the terminal's locale lacks
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads: its idle threads spin otherwise
    warnings.formatwarning = lambda message, *_, **__: f"epmvg: {message}\n"
    try:
        app(arguments)
    except InputError as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"{error.filename or 'a file'}: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        from epmvg.core.hardware import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        _refuse("Memory ran out: ask about fewer phrases or smaller pictures at once, or use a smaller model.")


def _refuse(sentence: str) -> NoReturn:
    print(f"epmvg: {sentence}", file=sys.stderr)
    sys.exit(2)


def _version(asked: bool) -> None:
    if asked:
        print(f"epmvg {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say nothing while work goes on: answers and mistakes only.")
    ] = False,
) -> None:
    rank_and_world_size()  # incomplete variables of a launcher are named before any work
    screen.told.quiet = screen.errors.quiet = quiet
