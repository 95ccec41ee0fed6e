"""What verbs share: the terminal, and words that several of them use."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from epmvg.core.distributed import rank_and_world_size
from epmvg.core.types import InputError

console = Console(markup=False, emoji=False, highlight=False)
"""For results; the text of users and files is printed as it stands."""

told = Console(markup=False, emoji=False, highlight=False)
errors = Console(stderr=True, markup=False, emoji=False, highlight=False)
"""For progress and remarks; `--quiet` silences both."""

RUN = "A folder that training wrote, `default` for the model that ships in this package, or OWNER/NAME on the hub."

DEVICE = "Where to compute: auto (CUDA, then MPS, then CPU), cpu, cuda, cuda:1 or mps."


def is_first() -> bool:
    """Return whether this process prints results, of those a launcher started together."""
    return rank_and_world_size()[0] == 0


def refuse_options(why: str, **options: object) -> None:
    """Reject options that were given and have no effect.

    Args:
        why: what they are for, for example "applies to many images, with --out".
        options: values by their Python name; None, False and empty ones were not given.

    Raises:
        InputError: one was given.
    """
    for name, value in options.items():
        if value is not None and value is not False and value != []:
            raise InputError(f"--{name.replace('_', '-')} {why}: leave it out here.")


def say_skipped(skipped: dict[str, int], first: dict[str, str]) -> None:
    """Print how many rows were left out, by reason, and the first of each."""
    for reason, count in skipped.items():
        console.print(f"{count:,} row{'s' * (count > 1)} skipped: {reason} (first: {first[reason]})", soft_wrap=True)


def table(title: str, rows: list[dict[str, str]]) -> None:
    """Print rows that share their keys; never cut a value when piped."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for number, name in enumerate(rows[0] if rows else []):
        table.add_column(name, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    console.print(table, soft_wrap=not console.is_terminal)
