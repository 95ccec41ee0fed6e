"""Read run folders: settings, metrics and predictions."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from epmvg.config.flat import flatten
from epmvg.core.locate import own_folder
from epmvg.core.types import InputError
from epmvg.data.readers.jsonl import json_object, json_objects
from epmvg.evaluation.metrics import Row
from epmvg.evaluation.samples import evaluation_name


@dataclass(frozen=True, slots=True)
class Run:
    """The content of a run's folder; a split is named "DATA SPLIT"."""

    name: str  # unique on the page
    folder: Path
    settings: dict[str, Any]  # flat, dotted keys
    metrics: list[dict[str, Any]]
    predictions: dict[str, list[Row]] = field(default_factory=dict)  # by split
    protocols: dict[str, str] = field(default_factory=dict)
    negatives: dict[str, list[Row]] = field(default_factory=dict)

    def last(self, key: str) -> float | None:
        """Return the last number of a key in the metrics, for example "seconds"."""
        return next((float(row[key]) for row in reversed(self.metrics) if is_number(row.get(key))), None)


def split_order(split: str) -> tuple[int, str]:
    """Return a sort key of "DATA SPLIT": test splits first, validation and training splits last."""
    name = split.rpartition(" ")[2]
    return 0 if name.startswith("test") else 2 if name.startswith(("val", "train")) else 1, split


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_runs(folders: Sequence[Path | str]) -> list[Run]:
    """Read run folders, or the folders of results of `default` and models of the hub.

    Raises:
        InputError: none is given, one is given twice, or one is missing, unreadable or without predictions.
    """
    if not folders:
        raise InputError("No run given. Give at least one run folder.")
    paths = list(map(own_folder, folders))
    resolved = [path.resolve() for path in paths]
    names = [path.name for path in resolved]
    runs = []
    for given, path, whole in zip(folders, paths, resolved, strict=True):
        if not path.is_dir():
            raise InputError(
                f"There is no folder {given}, and no results of such a model in {path}. "
                f"Check the path, or run `epmvg evaluate {given}` first."
            )
        if resolved.count(whole) > 1:
            raise InputError(f"{path} is given twice. Give each run once.")
        run = _read_run(path, whole.name if names.count(whole.name) == 1 else str(whole))
        if not run.predictions:
            raise InputError(f"{path} holds no predictions. Run `epmvg evaluate {given}` first.")
        runs.append(run)
    return runs


def _read_run(folder: Path, name: str) -> Run:
    run = Run(name, folder, flatten(_read_settings(folder / "config.yaml")), read_metrics(folder))
    for file in sorted(folder.glob("predictions-*.jsonl")):
        rows = list(json_objects(file))
        for location, row in rows:
            if not _is_prediction(row):
                raise InputError(f"{location} is not a prediction with its target and IoU. Run `epmvg evaluate` again.")
        if rows:
            split, protocol = _split_of(file)
            run.predictions[split] = [row for _, row in rows]
            run.protocols[split] = protocol
            negatives = file.with_name(file.name.replace("predictions-", "negatives-", 1))
            read = json_objects(negatives) if negatives.is_file() else ()
            run.negatives[split] = [row for _, row in read if is_number(row.get("score"))]
    return run


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of metrics.jsonl, if any; a last line without an end was torn when the run was killed."""
    file = folder / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    return [json_object(line, f"{file} line {number}") for number, line in enumerate(whole, 1)]


def _split_of(predictions: Path) -> tuple[str, str]:
    """Return split and protocol of a file of predictions: from the evaluation beside it, else from its name."""
    stem = predictions.stem.removeprefix("predictions-")
    file = predictions.with_name(f"evaluation-{stem}.json")
    if file.is_file():
        try:
            evaluation = json.loads(file.read_text(encoding="utf-8"))
            return evaluation_name(evaluation), str(evaluation["protocol"])
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{file} is not the result of an evaluation. Run `epmvg evaluate` again.") from error
    return " ".join(stem.rsplit("-", 1)), ""


def _read_settings(file: Path) -> dict[str, Any]:
    if not file.is_file():  # of a grounder that was not trained here
        return {}
    try:
        return dict(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise InputError(f"{file} is not a YAML mapping ({str(error).splitlines()[0]}). Restore it.") from error


def _is_prediction(row: Row) -> bool:
    """Return whether a row has image, phrase, target, IoU, and a box, which is None for a miss."""
    texts = all(isinstance(row.get(key), str) for key in ("image", "phrase"))
    boxes = [row.get("target"), *([] if row.get("box", ()) is None else [row.get("box")])]
    return texts and is_number(row.get("iou")) and all(map(_is_box, boxes))


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))
