"""The command line: a few lines per command, which parse, call the library and print."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable
from io import TextIOWrapper
from typing import Annotated, NoReturn

import typer

from epmvg.cli import catalogue, console, data, evaluate, export, predict, serve, train
from epmvg.core.distributed import rank_and_world_size
from epmvg.core.extras import optional_imports
from epmvg.core.files import expand_home
from epmvg.core.types import InputError
from epmvg.core.version import __version__

app = typer.Typer(
    help="Visual grounding: find the box of a phrase in an image.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
COMMANDS: tuple[Callable[..., None], ...] = (
    *(train.demo, train.train, evaluate.evaluate, evaluate.score, evaluate.calibrate, evaluate.report),
    *(predict.predict, predict.label, serve.serve, serve.bench, export.convert, export.export, export.publish),
    *(train.reproduce, catalogue.list_),
)
GROUPS: dict[str, tuple[str, dict[str, Callable[..., None]]]] = {
    "data": (
        "Count, check, convert, split and compose data sets.",
        {
            "stats": data.stats,
            "check": data.check,
            "convert": data.convert,
            "split": data.split,
            "compose": data.compose,
        },
    ),
    "teacher": ("Train and cache teachers.", {"train": train.train_teacher, "cache": train.cache_teacher}),
}

for command in COMMANDS:
    app.command(command.__name__.rstrip("_"))(command)
for name, (summary, commands) in GROUPS.items():
    group = typer.Typer(help=summary, no_args_is_help=True)
    app.add_typer(group, name=name)
    for verb, command in commands.items():
        group.command(verb)(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; unusable input ends it with one sentence and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a phrase may have characters that the locale lacks
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads: idle threads spin otherwise
    warnings.showwarning = lambda message, *_, **__: console.warn(str(message))
    try:
        with optional_imports("This command"):
            app([_expand_home(word) for word in (sys.argv[1:] if arguments is None else arguments)])
    except InputError as error:
        _fail(str(error))
    except OSError as error:
        file, reason = error.filename or "A file", error.strerror or error
        _fail(f"{file} cannot be used ({reason}). Check the path, its permissions and the free space.")
    except (MemoryError, RuntimeError) as error:
        from epmvg.core.hardware import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        _fail("Out of memory. Use fewer phrases, smaller images or a smaller model.")


def _expand_home(word: str) -> str:
    """Replace ~/ where shells do, and as the value of an option or setting, where many do not."""
    return re.sub(r"^((?:--)?[\w.-]+=)?~(?=/)", lambda match: f"{match[1] or ''}{expand_home('~')}", word)


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _print_version(is_given: bool) -> None:
    if is_given:
        print(f"epmvg {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")] = False,
) -> None:
    rank_and_world_size()  # rejects incomplete variables of a launcher before any work
    console.log_console.quiet = console.error_console.quiet = quiet
