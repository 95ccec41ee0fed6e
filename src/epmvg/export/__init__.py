"""A run as two graphs for ONNX Runtime or OpenVINO, in a folder that `Predictor` runs without torch."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from epmvg.core.calibration import CONFIDENCE_FILE
from epmvg.core.files import write_json, write_text
from epmvg.core.geometry import Letterbox
from epmvg.core.images import open_image
from epmvg.core.types import InputError, Sample
from epmvg.core.version import __version__
from epmvg.data.loader import group_by_image
from epmvg.data.registry import open_samples
from epmvg.evaluation.evaluate import ious, prediction_row
from epmvg.evaluation.metrics import Metrics
from epmvg.evaluation.samples import limit_to_images
from epmvg.export.graphs import write_onnx
from epmvg.export.parity import largest_difference
from epmvg.inference.predictor import Predictor
from epmvg.inference.runtimes.exported import (
    IMAGE,
    PHRASES,
    SETTINGS,
    SUFFIX,
    ExportedRuntime,
    import_extra,
    is_exported,
)
from epmvg.inference.runtimes.torch_runtime import TorchRuntime
from epmvg.models.factory import load
from epmvg.models.grounder import Grounder

Format = Literal["onnx", "openvino"]

BOUND = 0.05
"""Pixels of the canvas by which a float export may differ from the run."""

SCORE_BOUND = 0.001
"""By which raw scores of a float export may differ from the run's."""

MOST_LOSS = 0.005
"""Acc@0.5 that int8 may lose."""


@dataclass(frozen=True, slots=True)
class Photos:
    """Real photos to calibrate int8 on, and others to score it on.

    Args:
        data: a data set's name or file of rows.
        split: of that data; None takes all rows.
        root: where the data lies.
        images: to calibrate on, at most, and at most half of them all.
        phrases: to score, at most, all about other photos.
    """

    data: str
    split: str | None = None
    root: str | None = None
    images: int = 64
    phrases: int = 1000

    def read(self) -> tuple[list[Path], list[Sample]]:
        """Return the photos to calibrate on and the rows to score.

        Raises:
            InputError: the data cannot be read, or names no other photos to score on.
        """
        records = open_samples(self.data, split=self.split, root=self.root)
        photos = list(dict.fromkeys(record.image for record in records))
        most = min(self.images, len(photos) // 2)
        chosen = [photos[number] for number in np.random.default_rng(0).permutation(len(photos))[:most]]
        known = set(chosen)
        others = [record for record in records if record.image not in known]
        if not chosen or not others:
            raise InputError(f"{self.data} names too few photos: int8 is calibrated on some and scored on others.")
        return chosen, limit_to_images(others, self.phrases, seed=0)


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
        InputError: the run or the photos cannot be read, `out` is something else, a package is missing, the graphs do
            not answer as the run does, or int8 loses too much. Nothing is written then.
    """
    out = Path(out)
    if out.exists() and not is_exported(out):
        raise InputError(f"{out} exists and is no exported folder: give another --out.")
    for package in ("onnx", "onnxscript", "onnxruntime", *(["openvino"] if kind == "openvino" else [])):
        import_extra(package)
    model = load(run)
    chosen, rows = photos.read() if photos else ([], [])
    with _workshop(out) as folder:
        plain = folder / "fp32"
        settings = write_folder(model, plain, kind)
        moved, rescored = largest_difference(TorchRuntime(copy.deepcopy(model)), ExportedRuntime(plain))
        say(
            f"largest difference from the run: a box's edge {moved:.5f} of {model.image_size} px, "
            f"a score {rescored:.6f}"
        )
        if not (moved <= BOUND and rescored <= SCORE_BOUND):  # nan is no match
            raise InputError(
                f"The exported {run} differs from the run by {moved:.3f} px and {rescored:.4f} in score, more than "
                f"{BOUND} px or {SCORE_BOUND}: export with other versions of torch, onnxscript and the runtime."
            )
        settings |= {"difference_px": round(moved, 6), "difference_score": round(rescored, 6)}
        done = plain
        if photos:
            done = folder / "int8"
            settings |= _quantize(plain, done, settings, (chosen, rows), accept_loss, say)
        write_json(done / SETTINGS, settings)
        for file in [done / f"{name}.onnx" for name in (IMAGE, PHRASES) if kind != "onnx"]:
            file.unlink()
        if out.exists():
            out.rename(folder / "earlier")
        done.rename(out)
    return settings


def write_folder(model: Grounder, folder: Path, kind: Format) -> dict[str, Any]:
    """Write a model's graphs, tokenizer and settings, and return these; the ONNX graphs stay beside OpenVINO's.

    Nothing is measured, so nothing is refused: that is what `export_run` is for.
    """
    folder.mkdir()
    write_onnx(model, folder)
    if model.calibration is not None:
        write_text(folder / CONFIDENCE_FILE, model.calibration.dump())
    model.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"format": "onnx", "precision": "fp32", "image_size": model.image_size, "max_length": model.max_length}
    settings |= {"pad_id": model.tokenizer.pad_token_id or 0}
    settings |= {"epmvg": __version__, "torch": torch.__version__}
    if model.domain is not None:
        settings["domain"] = model.domain
    write_json(folder / SETTINGS, settings)
    return to_openvino(folder) if kind == "openvino" else settings


def _quantize(
    plain: Path,
    folder: Path,
    settings: dict[str, Any],
    photos: tuple[Sequence[Path], Sequence[Sample]],
    accept_loss: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write the int8 twin of a float export and score both; return the settings that differ."""
    from epmvg.export.int8 import quantize

    chosen, rows = photos
    shutil.copytree(plain, folder)
    quantize(folder, (_canvas(photo, settings["image_size"]) for photo in chosen))
    if settings["format"] == "openvino":
        to_openvino(folder)
    moved, rescored = largest_difference(ExportedRuntime(plain), ExportedRuntime(folder))
    image_size = settings["image_size"]
    say(f"largest difference of int8 from float: a box's edge {moved:.2f} of {image_size} px, a score {rescored:.3f}")
    if not np.isfinite([moved, rescored]).all():
        raise InputError("int8 gives boxes or scores that are not numbers: calibrate on other images.")
    before, after = score(Predictor(plain), rows), score(Predictor(folder), rows)
    say(f"Acc@0.5 on {before.n} phrases: {before.acc50:.4f} in float, {after.acc50:.4f} in int8")
    say(f"mean IoU: {before.miou:.4f} in float, {after.miou:.4f} in int8")
    if round(before.acc50 - after.acc50, 9) > MOST_LOSS and not accept_loss:
        raise InputError(
            f"int8 loses {before.acc50 - after.acc50:.4f} of Acc@0.5 ({before.acc50:.4f} to {after.acc50:.4f}), "
            f"more than {MOST_LOSS}: calibrate on more photos like those it will meet, or give accept_loss=True."
        )
    scores = {"n": before.n, "acc50": {"fp32": before.acc50, "int8": after.acc50}}
    found = {"precision": "int8", "calibrated_on": len(chosen)}
    return found | {"int8_difference_px": round(moved, 3), "scores": scores}


def score(ground: Predictor, records: Sequence[Sample]) -> Metrics:
    """Score whatever a `Predictor` runs; every photo is encoded once."""
    answered = []
    for image, numbers in group_by_image(records).items():
        rows = [records[number] for number in numbers]
        boxes, _ = ground.predict_boxes(image, [row.phrase for row in rows])
        overlap = ious(boxes, [row.box for row in rows])
        answered += [prediction_row(*each, score=None) for each in zip(rows, boxes, overlap, strict=True)]
    return Metrics.of(answered)


def _canvas(photo: Path, side: int) -> tuple[np.ndarray, np.ndarray]:
    image = open_image(photo)
    letterbox = Letterbox.fit(*image.size, side)
    pixels, image_mask = letterbox.pad(letterbox.resize(image))
    return pixels[None], image_mask[None]


def to_openvino(folder: Path) -> dict[str, Any]:
    """Write OpenVINO's graphs beside the ONNX graphs of a folder, weights as they are, and return its new settings.

    Raises:
        InputError: OpenVINO is not installed.
    """
    openvino = import_extra("openvino")
    core = openvino.Core()  # its own reader; `openvino.convert_model` would tell its maker that it was used
    for name in (IMAGE, PHRASES):
        graph = core.read_model(str(folder / f"{name}{SUFFIX['onnx']}"))
        openvino.save_model(graph, str(folder / f"{name}{SUFFIX['openvino']}"), compress_to_fp16=False)
    settings: dict[str, Any] = json.loads((folder / SETTINGS).read_text(encoding="utf-8")) | {"format": "openvino"}
    write_json(folder / SETTINGS, settings)
    return settings


@contextmanager
def _workshop(out: Path) -> Iterator[Path]:
    """Make a folder beside `out` that is gone afterwards, whatever happened."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
