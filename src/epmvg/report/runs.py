"""Read run folders: settings, metrics and predictions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from epmvg.core.types import InputError
from epmvg.evaluation.metrics import Row


@dataclass(frozen=True, slots=True, order=True)
class SplitName:
    """A data set and split; test splits sort first, validation and training splits last."""

    rank: int
    data: str
    split: str

    @classmethod
    def of(cls, data: str, split: str) -> SplitName:
        """Return the name of a split."""
        rank = 0 if split.startswith("test") else 2 if split.startswith(("val", "train")) else 1
        return cls(rank, data, split)

    def __str__(self) -> str:
        return f"{self.data} {self.split}"


@dataclass(frozen=True, slots=True)
class Run:
    """The content of a run's folder."""

    name: str  # unique on the page
    folder: Path
    settings: dict[str, Any]  # flat, dotted keys
    metrics: list[dict[str, Any]]
    predictions: dict[SplitName, list[Row]] = field(default_factory=dict)
    protocols: dict[SplitName, str] = field(default_factory=dict)
    negatives: dict[SplitName, list[Row]] = field(default_factory=dict)

    @property
    def teacher(self) -> str | None:
        """The teacher's name, None for a baseline."""
        return self.settings.get("distill.teacher")

    def last(self, key: str) -> float | None:
        """Return the last number of a key in the metrics, for example "seconds"."""
        numbers = [row[key] for row in self.metrics if is_number(row.get(key))]
        return float(numbers[-1]) if numbers else None


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_runs(folders: Sequence[Path | str]) -> list[Run]:
    """Read run folders.

    Raises:
        InputError: none is given, one is given twice, or one is missing, unreadable or without predictions.
    """
    if isinstance(folders, str | Path):
        folders = [folders]
    if not folders:
        raise InputError("No run given: give at least one run folder.")
    paths = [Path(folder) for folder in folders]
    for path in paths:
        if sum(path.resolve() == other.resolve() for other in paths) > 1:
            raise InputError(f"{path} is given twice: give each run once.")
    names = [path.resolve().name for path in paths]
    return [
        _read_run(path, name if names.count(name) == 1 else str(path.resolve()))
        for path, name in zip(paths, names, strict=True)
    ]


def _read_run(folder: Path, name: str) -> Run:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the --out of a training.")
    metrics = folder / "metrics.jsonl"
    settings = _flatten(_read_settings(folder / "config.yaml"))
    run = Run(name, folder, settings, [row for _, row in _read_jsonl(metrics)] if metrics.is_file() else [])
    for file in sorted(folder.glob("predictions-*.jsonl")):
        split, protocol = _split_of(file)
        rows = _read_jsonl(file)
        for number, row in rows:
            if error := _error(row):
                raise InputError(f"{file} line {number}: {error}; run `epmvg evaluate` again.")
        if rows:
            run.predictions[split] = [row for _, row in rows]
            run.protocols[split] = protocol
            negatives = file.with_name(file.name.replace("predictions-", "negatives-", 1))
            read = _read_jsonl(negatives) if negatives.is_file() else []
            run.negatives[split] = [row for _, row in read if is_number(row.get("score"))]
    if not run.predictions:
        raise InputError(f"{folder} holds no predictions: run `epmvg evaluate {folder}` first.")
    return run


def _split_of(predictions: Path) -> tuple[SplitName, str]:
    """Return split and protocol of a file of predictions: from the evaluation beside it, else from its name."""
    stem = predictions.stem.removeprefix("predictions-")
    file = predictions.with_name(f"evaluation-{stem}.json")
    evaluation: dict[str, Any] = {}
    if file.is_file():
        try:
            evaluation = dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise InputError(f"{file} is not valid JSON: run `epmvg evaluate` again.") from error
    data, _, split = stem.rpartition("-")
    name = SplitName.of(str(evaluation.get("data") or data or stem), str(evaluation.get("split") or split))
    return name, str(evaluation.get("protocol") or "")


def _read_settings(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError(f"{file} does not exist: {file.parent} is not the folder of a run.")
    try:
        return dict(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise InputError(f"{file} is not a YAML mapping ({str(error).splitlines()[0]}): restore it.") from error


def _flatten(settings: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Turn {"train": {"lr": 1}} into {"train.lr": 1}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        nested = isinstance(value, dict) and value
        flat |= _flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def _error(row: Row) -> str:
    for key in ("image", "phrase"):
        if not isinstance(row.get(key), str):
            return f"{key!r} is missing or not text"
    for key in ("box", "target"):
        box = row.get(key)
        if key == "box" and box is None and "box" in row:
            continue  # a miss
        if not isinstance(box, list) or len(box) != 4 or not all(is_number(edge) for edge in box):
            return f"{key!r} is missing or not four numbers"
    return "" if is_number(row.get("iou")) else "'iou' is missing or not a number"


def _read_jsonl(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """Read numbered rows; a last line without an end was torn when the run was killed, and is skipped."""
    rows = []
    lines = file.read_bytes().decode("utf-8", "replace").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise InputError(f"{file} line {number} is not valid JSON: delete that line.") from error
        if not isinstance(row, dict):
            raise InputError(f"{file} line {number} is not a JSON object: delete that line.")
        rows.append((number, row))
    return rows
