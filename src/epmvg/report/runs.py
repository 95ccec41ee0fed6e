"""Reads run folders: settings, metrics and predictions, tolerant of what later versions add and killed runs tear."""

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
    """Which rows a run was asked about; test splits come first, validation and training splits last."""

    rank: int
    data: str
    split: str

    @classmethod
    def of(cls, data: str, split: str) -> SplitName:
        """Name a split and give it its place on the page."""
        rank = 0 if split.startswith("test") else 2 if split.startswith(("val", "train")) else 1
        return cls(rank, data, split)

    def __str__(self) -> str:
        return f"{self.data} {self.split}"


@dataclass(frozen=True, slots=True)
class Run:
    """What a run's folder says."""

    name: str  # different from the other runs' on the page
    folder: Path
    settings: dict[str, Any]  # flat, dotted keys
    metrics: list[dict[str, Any]]
    answers: dict[SplitName, list[Row]]  # rows of predictions
    protocols: dict[SplitName, str]  # how a hit was counted, where the evaluation says
    absent: dict[SplitName, list[Row]] = field(default_factory=dict)  # phrases asked of images they do not belong to

    @property
    def teacher(self) -> str | None:
        """The teacher's name, None for a plain run."""
        named = self.settings.get("distill.teacher") or self.settings.get("distill")
        if named is None and any(key.startswith("distill.") for key in self.settings):
            return "unnamed teacher"
        return str(named) if named else None

    def last(self, key: str) -> float | None:
        """Return the last number that the metrics give for a key, for example "seconds"."""
        numbers = [row[key] for row in self.metrics if is_number(row.get(key))]
        return float(numbers[-1]) if numbers else None


def read_runs(folders: Sequence[Path | str]) -> list[Run]:
    """Read run folders.

    Raises:
        InputError: none given, or one is missing, empty, unreadable or without predictions.
    """
    if isinstance(folders, str | Path):
        folders = [folders]
    if not folders:
        raise InputError("There is no run to report on: give at least one run folder.")
    paths = [Path(folder) for folder in folders]
    for path in paths:
        if sum(path.resolve() == other.resolve() for other in paths) > 1:
            raise InputError(f"{path} is named twice: name each run once.")
    return [_read_run(path, name) for path, name in zip(paths, _names(paths), strict=True)]


def is_number(value: Any) -> TypeGuard[float]:
    """Say whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _names(paths: Sequence[Path]) -> list[str]:
    """Name each folder by its last part, or by as many parts as tell it from the others."""
    parts = [path.resolve().parts for path in paths]
    names = ["/".join(part[-1:]) for part in parts]
    for depth in range(2, max(len(part) for part in parts) + 1):
        names = [
            name if names.count(name) == 1 else "/".join(part[-depth:]) for name, part in zip(names, parts, strict=True)
        ]
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, 1)]


def _read_run(folder: Path, name: str) -> Run:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the --out of a training.")
    answers: dict[SplitName, list[Row]] = {}
    protocols: dict[SplitName, str] = {}
    absent: dict[SplitName, list[Row]] = {}
    for file in sorted(folder.glob("predictions-*.jsonl")):
        split, protocol = _describe(file)
        rows = _read_predictions(file)
        if rows:
            answers[split] = rows
            protocols |= {split: protocol} if protocol else {}
            absent[split] = _read_absent(file.with_name(file.name.replace("predictions-", "absent-", 1)))
    if not answers:
        raise InputError(f"{folder} holds no predictions: run `epmvg evaluate {folder}` first.")
    settings = _flatten(_read_settings(folder / "config.yaml"))
    ordered = {split: answers[split] for split in sorted(answers)}
    return Run(name, folder, settings, _read_metrics(folder / "metrics.jsonl"), ordered, protocols, absent)


def _describe(predictions: Path) -> tuple[SplitName, str]:
    """Read which split a predictions file answers from the evaluation beside it, else from its name."""
    stem = predictions.stem.removeprefix("predictions-")
    evaluation = predictions.with_name(f"evaluation-{stem}.json")
    said: Any = {}
    if evaluation.is_file():
        try:
            said = json.loads(evaluation.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{evaluation} is not valid JSON: run `epmvg evaluate` again.") from error
    said = said if isinstance(said, dict) else {}
    data, _, split = stem.rpartition("-")
    name = SplitName.of(str(said.get("data") or data or stem), str(said.get("split") or split))
    return name, str(said.get("protocol") or "")


def _read_settings(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError(f"{file} does not exist: {file.parent} is not the folder of a run.")
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not valid YAML ({str(error).splitlines()[0]}): restore it.") from error
    if not isinstance(settings, dict):
        raise InputError(f"{file} must hold key: value settings: restore it.")
    return settings


def _flatten(settings: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"lr": 1}} -> {"train.lr": 1}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _read_metrics(file: Path) -> list[dict[str, Any]]:
    return [row for _, row in _read_jsonl(file)] if file.is_file() else []


def _read_absent(file: Path) -> list[Row]:
    rows = [row for _, row in _read_jsonl(file)] if file.is_file() else []
    return [row for row in rows if isinstance(row.get("image"), str) and is_number(row.get("score"))]


def _read_predictions(file: Path) -> list[Row]:
    rows = _read_jsonl(file)
    for number, row in rows:
        fault = _fault(row)
        if fault:
            raise InputError(f"{file} line {number}: {fault}; run `epmvg evaluate` again.")
    return [row for _, row in rows]


def _fault(row: Row) -> str:
    for key in ("image", "phrase"):
        if not isinstance(row.get(key), str):
            return f"{key!r} is missing or not text"
    for key in ("box", "target"):
        box = row.get(key)
        if not isinstance(box, list) or len(box) != 4 or not all(is_number(edge) for edge in box):
            return f"{key!r} is missing or not four numbers"
    return "" if is_number(row.get("iou")) else "'iou' is missing or not a number"


def _read_jsonl(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """Read numbered rows; a last line without an end was being written when the run was killed, and is left out."""
    rows = []
    text = file.read_bytes().decode("utf-8", "replace")
    lines = text.split("\n")
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
