"""The paper's tables 1 to 7 and studies of our own as data: reported values, and the setting of each row."""

from __future__ import annotations

from importlib import resources
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, model_validator

from epmvg.core.types import InputError


class Row(BaseModel):
    """One row of a table: a system that the paper cites, or a model that we can train."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    reported: tuple[float | None, ...] = ()  # Acc@0.5 in %, one per column; None where the paper has a dash
    reported_in: str = ""  # where the values stand, if not in this table
    group: str = ""
    backbone: str = ""
    source: str = ""  # the paper's own bracket for a cited system
    student: str | None = None  # the preset; None for a cited system
    distill: dict[str, Any] | None = None  # changes of the paper's distillation settings; None trains without a teacher
    giou: float = 1.0  # lambda of eq. 8
    settings: dict[str, Any] = {}  # further keys of the recipe, dotted
    epochs: float = 1.0  # factor of the recipe's own
    against: str = ""  # the row that it is compared with; "" for the table's first


class Table(BaseModel):
    """A table of the paper or a study of our own. A column is a data set and a split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    note: str = ""
    columns: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]

    @model_validator(mode="after")
    def _check(self) -> Table:
        if any(row.reported and len(row.reported) != len(self.columns) for row in self.rows):
            raise ValueError("a row does not have one value per column")
        return self


def read_tables() -> dict[str, Table]:
    """Return the paper's tables by number, then the studies by name."""
    tables = yaml.safe_load((resources.files("epmvg.experiments") / "tables.yaml").read_text(encoding="utf-8"))
    return {str(name): Table.model_validate(values) for name, values in tables.items()}


def read_table(name: str) -> Table:
    """Return one table.

    Raises:
        InputError: there is no table of that name.
    """
    tables = read_tables()
    if name not in tables:
        raise InputError(f"There is no table {name!r}. Give one of {', '.join(tables)}.")
    return tables[name]
