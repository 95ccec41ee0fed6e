"""A run as two graphs for ONNX Runtime or OpenVINO, in a folder that `Predictor` runs without torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from epmvg import __version__
from epmvg.backends.eager import EagerBackend
from epmvg.backends.exported import IMAGE, PHRASES, SETTINGS, SUFFIX, ExportedBackend, is_exported
from epmvg.boxes import paired_iou
from epmvg.data.catalog import open_records
from epmvg.evaluation import Scores, write_json
from epmvg.export.parity import largest_difference
from epmvg.models.factory import load
from epmvg.predict import Predictor
from epmvg.types import InputError, Record

Format = Literal["onnx", "openvino"]

BOUND = 0.05
"""Pixels of the canvas by which a float export may differ from the run."""

MOST_LOSS = 0.005
"""Acc@0.5 that int8 may lose."""


@dataclass(frozen=True, slots=True)
class Photos:
    """Real photos to calibrate int8 on, and others to score it on.

    Args:
        data: a data set's name or file of rows.
        split: of it; None takes all rows.
        root: where the data lies.
        split_key: the row key that names the split.
        images: to calibrate on, at most; half of the photos where there are fewer than twice as many.
        phrases: to score, at most, all about other photos.
    """

    data: str
    split: str | None = "val"
    root: str | None = None
    split_key: str = "split"
    images: int = 64
    phrases: int = 1000

    def read(self) -> tuple[list[Path], list[Record]]:
        """Return the photos to calibrate on and the rows to score.

        Raises:
            InputError: the data cannot be read, or names a single photo.
        """
        records = open_records(self.data, split=self.split, root=self.root, split_key=self.split_key)
        photos = list(dict.fromkeys(record.image for record in records))
        if len(photos) < 2:
            raise InputError(f"{self.data} names one photo: int8 is calibrated on some and scored on others.")
        order = np.random.default_rng(0).permutation(len(photos))
        chosen = [photos[number] for number in order[: min(self.images, len(photos) // 2)]]
        others = [record for record in records if record.image not in set(chosen)]
        return chosen, others[: self.phrases]


def export_run(
    run: Path | str,
    out: Path | str,
    *,
    kind: Format = "onnx",
    photos: Photos | None = None,
    accept_loss: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Export a run into a folder that needs neither torch nor the run.

    Args:
        run: a folder that training wrote.
        out: the folder to write; an earlier export there is replaced when the new one is whole.
        kind: which runtime the folder is for.
        photos: quantise to int8, calibrated and scored on these; None keeps float weights.
        accept_loss: write an int8 export whose Acc@0.5 falls by more than `MOST_LOSS`, too.
        say: called with a line about each thing measured.

    Returns:
        what `export.json` holds.

    Raises:
        InputError: the run or the photos cannot be read, `out` is something else, the graphs do not answer as the run
            does, or int8 loses too much. Nothing is written then.
    """
    out = Path(out)
    if out.exists() and not is_exported(out):
        raise InputError(f"{out} exists and is no exported folder: give another --out.")
    model = load(run)
    read = photos.read() if photos else None
    with _staged(out) as folder: 
        ...
    return {}
