"""Output on the terminal, and arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from epmvg.core.distributed import rank_and_world_size
from epmvg.core.types import InputError

console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
"""For results; phrases and file names are printed as they are, never as markup."""

log_console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
error_console = Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)
"""For progress and warnings; `--quiet` silences both."""


def warn(message: str) -> None:
    """Print a warning, which `--quiet` silences."""
    error_console.print(f"warning: {message}")


Run = Annotated[
    Path, typer.Argument(help="Folder of a run or export, `default` (the bundled model), OWNER/NAME or hf:OWNER/NAME.")
]
Recipe = Annotated[str, typer.Argument(help="Name (see `epmvg list recipes`) or YAML file.")]
Settings = Annotated[
    list[str] | None, typer.Argument(help="key=value, for example train.epochs=3; or a recipe on top: improved.")
]
Data = Annotated[str, typer.Argument(help="Name of a data set, or an annotation file or folder.")]
RunData = Annotated[str | None, typer.Option("--data", help="Data set or file; the run's own by default.")]
Split = Annotated[str | None, typer.Option(help="Split of the data.")]
Root = Annotated[str | None, typer.Option(help="Folder of the data set.")]
Device = Annotated[
    str,
    typer.Option(help="auto (CUDA, then MPS, then CPU; for graphs and `default` the CPU), cpu, cuda, cuda:1 or mps."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


_UNLIMITED = 10_000
"""Characters of a line that is piped."""


def is_first() -> bool:
    """Return whether this process prints results, of those that a launcher started."""
    return rank_and_world_size()[0] == 0


def reject_options(reason: str, **options: object) -> None:
    """Reject options that were given and have no effect.

    Args:
        reason: what they apply to, for example "applies to many images, with --out".
        options: values by Python name; None, False and empty lists were not given.

    Raises:
        InputError: one was given.
    """
    for name, value in options.items():
        if value is not None and value is not False and value != []:
            raise InputError(f"--{name.replace('_', '-')} {reason}. Leave it out.")


def print_skipped(skipped: dict[str, int], first: dict[str, str]) -> None:
    """Print how many annotations were skipped, by reason, and the first of each."""
    for reason, count in skipped.items():
        console.print(f"skipped {count:,}: {reason} (first: {first[reason]})")


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows that share their keys; values are never cut when piped."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for number, name in enumerate(rows[0] if rows else []):
        table.add_column(name.replace("_", " "), justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(_format, row.values()))
    if not console.is_terminal:
        table.width = Measurement.get(console, console.options.update(max_width=_UNLIMITED), table).maximum
    console.print(table, soft_wrap=not console.is_terminal)


def format_points(difference: dict[str, float] | None) -> str | None:
    """Return a difference in percentage points with its 95 % interval."""
    if difference is None:
        return None
    return f"{difference['points']:+.1f} ({difference['low']:+.1f} to {difference['high']:+.1f})"


def _format(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.4f}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
