"""The paper's tables 1 to 7 and studies of our own as data: reported values, and the setting of each row."""

from __future__ import annotations

from collections.abc import Iterator
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
    distill: dict[str, Any] | None = None
    """Changes of the paper's distillation settings, `unlabeled` as a number of scenes; None: no teacher."""
    giou: float = 1.0  # lambda of eq. 8
    settings: dict[str, Any] = {}  # further keys of the recipe, dotted
    epochs: float = 1.0  # factor of the recipe's own
    against: str = ""  # the row that it is compared with; "" for the table's first
    boxes: int = 0  # images with boxes, where a grid states them
    captions: int = 0  # captioned scenes that its teacher was trained on; 0: the scale's teacher
    arm: str = ""  # of a grid
    order: int = 0  # lower ones are trained first, with all seeds; the last ones seed by seed


class Grid(BaseModel):
    """Rows by number of images with boxes, teacher and distillation settings.

    Each number has a plain row; where arms add images without boxes, also one that is trained for as many steps.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: str  # of all rows, on top of the scale's
    boxes: dict[int, dict[str, Any]]  # settings by number of images with boxes
    captions: dict[int, dict[str, Any]]  # settings of a teacher's training by number of captioned scenes
    arms: dict[str, dict[str, Any]]  # distillation settings by name
    first: tuple[tuple[int, int], ...]  # boxes and captions of the cells that are trained first
    milliseconds: dict[str, float]  # of one core: per phrase, with an unfrozen teacher, and per pair of a teacher
    phrases_per_image: float

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the values of the rows."""
        for boxes in self.boxes:
            plain = {"boxes": boxes, "distill": None, "order": self._order(boxes)}
            yield plain | {"name": _plain(boxes)}
            if ratios := [arm["unlabeled_ratio"] for arm in self.arms.values() if "unlabeled" in arm]:
                yield plain | {"name": _longer(boxes), "epochs": 1 + max(ratios)}
            for captions in self.captions:
                for arm, distill in self.arms.items():
                    row = {"name": f"{boxes:,} boxes, {captions:,} captions, {arm}", "arm": arm, "distill": distill}
                    yield row | {"boxes": boxes, "captions": captions, "order": self._order(boxes, captions)}

    def complete(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the values of a row with what follows from its number of images with boxes."""
        settings = self.boxes[row["boxes"]]
        base = _longer if "unlabeled" in (row.get("distill") or {}) else _plain
        rest = {"student": "transvg-r50", "against": base(row["boxes"]), "order": len(self.first)}
        return rest | row | {"settings": settings | row.get("settings", {})}

    def _order(self, boxes: int, captions: int = 0) -> int:
        found = (i for i, cell in enumerate(self.first) if cell[0] == boxes and captions in (0, cell[1]))
        return next(found, len(self.first))

    def hours(self, row: Row) -> float:
        """Return the hours of one core that a training of a row takes, with its evaluation."""
        distill = row.distill or {}
        is_frozen, unlabeled = distill.get("frozen", True), distill.get("unlabeled_ratio", 0.0)
        phrases = row.epochs * row.settings["train.epochs"] * row.boxes * self.phrases_per_image * (1 + unlabeled)
        milliseconds = phrases * self.milliseconds["phrase" if is_frozen else "unfrozen"]
        return float(milliseconds + self.milliseconds["evaluation"]) / 3.6e6

    def teacher_hours(self, captions: int) -> float:
        """Return the hours of one core that the training of a teacher takes."""
        pairs = captions * self.captions[captions]["epochs"]
        return float(pairs * self.milliseconds["pair"]) / 3.6e6


def _plain(boxes: int) -> str:
    return f"{boxes:,} boxes, plain"


def _longer(boxes: int) -> str:
    return f"{boxes:,} boxes, plain, longer"


class Table(BaseModel):
    """A table of the paper or a study of our own. A column is a data set and a split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    note: str = ""
    columns: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    grid: Grid | None = None  # its rows come before the others

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, values: dict[str, Any]) -> dict[str, Any]:
        if values.get("grid") is None:
            return values
        grid = Grid.model_validate(values["grid"])
        return values | {"rows": [grid.complete(row) for row in (*grid.rows(), *values["rows"])]}

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
