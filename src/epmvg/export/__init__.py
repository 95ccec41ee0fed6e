"""Export of a run as two graphs for ONNX Runtime or OpenVINO, in a folder that `Predictor` runs without torch."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from epmvg.core.calibration import CONFIDENCE_FILE
from epmvg.core.extras import optional_imports
from epmvg.core.files import disk_errors, write_json
from epmvg.core.locate import EXPORT_FILE, is_exported, is_run
from epmvg.core.types import InputError, Sample
from epmvg.data.registry import open_samples
from epmvg.evaluation.samples import limit_to_images
from epmvg.export.graphs import Format, write_folder
from epmvg.export.parity import largest_difference
from epmvg.inference.runtimes.exported import IMAGE, PHRASES, ExportedRuntime
from epmvg.inference.runtimes.torch_runtime import TorchRuntime
from epmvg.models.factory import load

MAX_BOX_DIFFERENCE = 0.05
"""Pixels of the input by which a box's edge may differ between a float export and the run."""

MAX_CONFIDENCE_DIFFERENCE = 0.001
"""By which raw confidences may differ between a float export and the run."""

MAX_SAMPLES = 1000
"""To evaluate int8 on."""

_GRAPH_FILES = {f"{graph}{suffix}" for graph in (IMAGE, PHRASES) for suffix in (".onnx", ".xml", ".bin")}
_FILES = _GRAPH_FILES | {EXPORT_FILE, CONFIDENCE_FILE, "tokenizer.json"}


@dataclass(frozen=True, slots=True)
class CalibrationData:
    """Images to calibrate int8 on, and others to evaluate it on.

    Args:
        data: a data set's name or an annotation file.
        split: of that data; None takes all samples.
        root: the data set's folder.
        max_images: to calibrate on, and at most half of them all.
    """

    data: str
    split: str | None = None
    root: str | None = None
    max_images: int = 64

    def read(self) -> tuple[list[Path], list[Sample]]:
        """Return the images to calibrate on and the samples to evaluate."""
        samples = open_samples(self.data, split=self.split, root=self.root)
        images = list(dict.fromkeys(sample.image for sample in samples))
        count = min(self.max_images, len(images) // 2)
        chosen = [images[number] for number in np.random.default_rng(0).permutation(len(images))[:count]]
        others = [sample for sample in samples if sample.image not in set(chosen)]
        if not chosen or not others:
            raise InputError(
                f"{self.data} has too few images to calibrate int8 on some and evaluate it on others. Give more."
            )
        return chosen, limit_to_images(others, MAX_SAMPLES, seed=0)


def export_run(
    run: Path | str,
    out: Path | str,
    *,
    format: Format = "onnx",
    calibration_data: CalibrationData | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Export a run into a folder that needs neither torch nor the run.

    Args:
        run: a folder that training wrote.
        out: the folder to write; an earlier export there is replaced once the new one is complete, unless the folder
            holds other files too.
        format: the runtime that the folder is for.
        calibration_data: quantize to int8, calibrated and evaluated on these; None keeps float weights.
        report: called with a line about each measurement.

    Returns:
        what `export.json` holds.

    Raises:
        InputError: the run or the data cannot be read, `out` is something else, a package is missing, the graphs'
            predictions differ from the run's, or int8 loses too much accuracy. Nothing is written then.
    """
    out = Path(out)
    _check_out(out)
    if format == "openvino":
        with optional_imports("--format openvino"):
            import_module("openvino")  # else it would be missing after minutes
    model = load(run)
    data = None if calibration_data is None else calibration_data.read()
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with (
        disk_errors(out),
        tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as beside,
    ):  # on the same disk
        temporary = Path(beside)
        done = temporary / "fp32"
        settings = write_folder(model, done, format)
        box, confidence = largest_difference(TorchRuntime(copy.deepcopy(model)), ExportedRuntime(done))
        report(f"largest difference from the run: box edge {box:.5f} of {model.image_size} px, score {confidence:.6f}")
        if not (box <= MAX_BOX_DIFFERENCE and confidence <= MAX_CONFIDENCE_DIFFERENCE):  # nan fails too
            raise InputError(
                f"The exported {run} differs from the run by {box:.3f} px and {confidence:.4f} in confidence, more "
                f"than {MAX_BOX_DIFFERENCE} px or {MAX_CONFIDENCE_DIFFERENCE}. "
                "Export with other versions of torch, onnxscript and the runtime."
            )
        settings |= {"difference_px": round(box, 6), "difference_score": round(confidence, 6)}
        if data is not None:
            from epmvg.export.int8 import quantize_and_evaluate

            done = temporary / "int8"
            shutil.copytree(temporary / "fp32", done)
            settings |= quantize_and_evaluate(temporary / "fp32", done, settings, *data, report)
        write_json(done / EXPORT_FILE, settings)
        for graph in done.glob("*.onnx") if format != "onnx" else ():
            graph.unlink()
        if out.exists():
            out.rename(temporary / "replaced")
        done.rename(out)
    return settings


def _check_out(out: Path) -> None:
    """Reject a folder that is anything but an earlier export."""
    if not out.exists():
        return
    if is_run(out) or not is_exported(out):
        raise InputError(f"{out} exists and is not an exported folder. Give another --out.")
    if out.resolve() == Path.cwd():
        raise InputError(f"{out} is the current folder, which cannot be replaced. Start the command in another one.")
    others = sorted(file.name for file in out.iterdir() if file.name not in _FILES)
    if others:
        raise InputError(f"{out} holds {others[0]}, which is not part of an export. Move it, or give another --out.")
