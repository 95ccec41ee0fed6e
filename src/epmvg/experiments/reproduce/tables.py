"""The paper's tables 1 to 7 and studies of our own as data: what was printed, and which setting a row stands for."""

from __future__ import annotations

from importlib import resources
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, model_validator

from epmvg.core.types import InputError


class Row(BaseModel):
    """One line of a table: a system that the paper cites, or a setting that we can train."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    printed: tuple[float | None, ...] = ()  # Acc@0.5 in %, one a column; None where the paper prints a dash
    printed_in: str = ""  # where the figures stand, if not in this table
    group: str = ""
    backbone: str = ""
    source: str = ""  # the paper's own bracket for a cited system
    student: str | None = None  # the preset; None for a cited system
    distill: dict[str, Any] | None = None  # what differs from the paper's default teacher; None trains without one
    giou: float = 1.0  # lambda of eq. 8
    settings: dict[str, Any] = {}  # further keys of the recipe, dotted
    epochs: float = 1.0  # times the recipe's own
    against: str = ""  # the row that it is compared with; "" for the table's first


class Table(BaseModel):
    """A table of the paper, or a study of our own, which prints nothing. A column is a data set and its split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    note: str = ""
    columns: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]

    @model_validator(mode="after")
    def _check(self) -> Table:
        if any(row.printed and len(row.printed) != len(self.columns) for row in self.rows):
            raise ValueError("a row has not one figure a column")
        return self


def read_tables() -> dict[str, Table]:
    """Return the paper's tables by number, then the studies by name."""
    return {str(name): Table.model_validate(values) for name, values in _yaml()["tables"].items()}


def read_table(name: str) -> Table:
    """Return one table.

    Raises:
        InputError: there is no table of that name.
    """
    tables = read_tables()
    if name not in tables:
        raise InputError(f"There is no table {name!r}: give one of {', '.join(tables)}.")
    return tables[name]


def published_phrases(data: str) -> int | None:
    """Return how many training phrases a published data set has; None for sets of our own."""
    phrases: dict[str, int] = _yaml()["phrases"]
    return phrases.get(data)


def _yaml() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(
        (resources.files("epmvg.experiments.reproduce") / "tables.yaml").read_text(encoding="utf-8")
    )
    return values
