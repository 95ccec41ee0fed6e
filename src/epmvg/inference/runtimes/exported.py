"""The runtime of exported folders: two graphs and a tokenizer, without torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from epmvg.core.calibration import read_calibration
from epmvg.core.extras import optional_imports
from epmvg.core.hardware import cpu_has_bf16, cpu_threads
from epmvg.core.locate import EXPORT_FILE
from epmvg.core.tokenizer import PhraseTokenizer
from epmvg.core.types import InputError
from epmvg.inference.runtimes.protocol import GrounderRuntime, ModelInputs, ModelOutput

IMAGE, PHRASES = "image", "phrases"
SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}

Graph = Callable[[dict[str, NDArray[Any]]], list[NDArray[Any]]]


class ExportedRuntime(GrounderRuntime):
    """Runs an exported folder with ONNX Runtime or OpenVINO, on the CPU.

    Args:
        folder: written by `epmvg export`.
        precision: fp32, bf16, or auto, which is bf16 where the processor multiplies it; only OpenVINO computes in bf16.
        threads: to compute with; by default `hardware.cpu_threads()`.

    Raises:
        InputError: a file is missing or broken, the runtime is not installed, or it does not compute in bf16.
    """

    def __init__(self, folder: Path, *, precision: str = "fp32", threads: int | None = None) -> None:
        settings = _read_settings(folder)
        self.image_size, self.max_length = settings["image_size"], settings["max_length"]
        self.calibration = read_calibration(folder)
        self.domain = settings.get("domain")
        kind, self._int8 = settings["format"], settings.get("precision") == "int8"
        if kind == "onnx" and precision == "bf16":
            raise InputError("ONNX Runtime does not compute in bf16. Export with --format openvino, or use fp32.")
        bf16 = kind == "openvino" and (precision == "bf16" or (precision == "auto" and cpu_has_bf16()))
        with optional_imports(str(folder)):
            module = import_module(f"epmvg.inference.runtimes.{kind}_runtime")
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self.tokenizer = PhraseTokenizer(tokenizer, self.max_length, settings.get("pad_id", 0))
            files = [folder / f"{name}{SUFFIX[kind]}" for name in (IMAGE, PHRASES)]
            self._image, self._phrases = module.open_graphs(files, threads or cpu_threads(), bf16)
        except Exception as error:  # each runtime raises classes of its own
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise InputError(f"{folder} cannot be loaded ({reason}). Export the run again.") from error

    def encode_pixels(self, images: NDArray[np.float32], image_mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Encode images [I, 3, S, S] with image_mask [I, S, S] -> features [I, ...]."""
        features: NDArray[np.float32] = self._image({"image": images, "image_mask": image_mask})[0]
        return features

    def concatenate(self, features: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Concatenate features of several images, in memory of their own."""
        return np.concatenate(features)

    def forward(self, inputs: ModelInputs) -> ModelOutput:
        """Predict P phrases in I encoded images.

        Int8 graphs scale the activations of a pass by their largest: each phrase has a pass of its own, without
        padding, so that no prediction depends on other phrases.
        """
        passes = [inputs.select(number) for number in range(len(inputs.tokens))] if self._int8 else [inputs]
        outputs = [self._phrases({field.name: getattr(one, field.name) for field in fields(one)}) for one in passes]
        boxes, scores, *dense = (np.concatenate(arrays) for arrays in zip(*outputs, strict=True))
        return ModelOutput(boxes.astype(np.float64), scores.astype(np.float64), *dense)

    def attention(self, inputs: ModelInputs) -> list[NDArray[np.float32]]:
        """Raise InputError: the graphs do not return it."""
        raise InputError(
            "Graphs return no attention. Use the run they were exported from; of `default` epmvg.load('default')."
        )


def _read_settings(folder: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads((folder / EXPORT_FILE).read_text(encoding="utf-8"))
        if settings["format"] in SUFFIX and settings["image_size"] > 0 and settings["max_length"] > 0:
            return settings
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / EXPORT_FILE} cannot be read. Export the run again.") from error
    raise InputError(f"{folder / EXPORT_FILE} has a format that this version does not run. Export the run again.")
