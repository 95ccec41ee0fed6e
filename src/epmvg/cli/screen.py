"""What verbs share: the terminal, and words that several of them use."""

from __future__ import annotations

import os

from rich.console import Console
from rich.table import Table

console = Console()
"""For answers."""

told = Console()
errors = Console(stderr=True)
"""For what is said while work goes on; `--quiet` silences both."""

RUN = "A folder that training wrote, `default` for the model that ships in this package, or OWNER/NAME on the hub."


def is_first() -> bool:
    """Say whether this is the process that speaks, of those a launcher started together."""
    return os.environ.get("RANK", "0") == "0"


def say_skipped(skipped: dict[str, int]) -> None:
    for reason, count in skipped.items():
        console.print(f"{count:,} row{'s' * (count > 1)} skipped: {reason}", soft_wrap=True)


def table(title: str, rows: list[dict[str, str]]) -> None:
    """Print rows that share their keys; never cut a value when piped."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for number, name in enumerate(rows[0] if rows else []):
        table.add_column(name, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    console.print(table, soft_wrap=not console.is_terminal)
