"""The paper's tables 1 to 7 as data: what was printed, and which setting a row stands for."""

from __future__ import annotations

from importlib import resources
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, model_validator

from epmvg.types import InputError


class Row(BaseModel):
    """One line of a table: a system that the paper cites, or a setting that we can train."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    printed: tuple[float | None, ...]  # Acc@0.5 in %, one a column; None where the paper prints a dash
    printed_in: str = ""  # where the figures stand, if not in this table
    group: str = ""
    backbone: str = ""
    source: str = ""  # the paper's own bracket for a cited system
    student: str | None = None  # the preset; None for a cited system
    distill: dict[str, Any] | None = None  # what differs from the paper's default teacher; None trains without one
    giou: float = 1.0  # lambda of eq. 8


class Table(BaseModel):
    """A table of the paper. A column is a data set and its split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    note: str = ""
    columns: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]

    @model_validator(mode="after")
    def _check(self) -> Table:
        if any(len(row.printed) != len(self.columns) for row in self.rows):
            raise ValueError("a row has not one figure a column")
        return self


def read_tables() -> dict[int, Table]:
    """Return the tables by number."""
    return {number: Table.model_validate(values) for number, values in _yaml()["tables"].items()}


def read_table(number: int) -> Table:
    """Return one table.

    Raises:
        InputError: there is no table of that number.
    """
    tables = read_tables()
    if number not in tables:
        raise InputError(f"The paper has no table {number}: give a number from {min(tables)} to {max(tables)}.")
    return tables[number]


def published_phrases(data: str) -> int | None:
    """Return how many training phrases a published data set has; None for sets of our own."""
    phrases: dict[str, int] = _yaml()["phrases"]
    return phrases.get(data)


def _yaml() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(
        (resources.files("epmvg.reproduce") / "tables.yaml").read_text(encoding="utf-8")
    )
    return values
