"""The two graphs of an exported folder, run without torch: numpy, tokenizers, and ONNX Runtime or OpenVINO."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epmvg.core.calibration import read_calibration
from epmvg.core.hardware import cpu_has_bf16, cpu_threads
from epmvg.core.locate import EXPORT_FILE
from epmvg.core.tokenizer import PhraseTokenizer
from epmvg.core.types import InputError

SETTINGS = EXPORT_FILE
IMAGE, PHRASES = "image", "phrases"
SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}

Graph = Callable[[dict[str, NDArray[Any]]], list[NDArray[Any]]]


def is_exported(folder: Path) -> bool:
    """Say whether `epmvg export` wrote a folder."""
    return (folder / SETTINGS).is_file()


class ExportedRuntime:
    """Answer with an exported folder.

    Args:
        folder: that `epmvg export` wrote.
        precision: fp32, bf16, or auto, which is bf16 where the processor has it; only OpenVINO computes in bf16.
        threads: to compute with; `hardware.cpu_threads()` by default.

    Raises:
        InputError: a file is missing or broken, the runtime is not installed, or it does not compute in bf16.
    """

    def __init__(self, folder: Path, *, precision: str = "fp32", threads: int | None = None) -> None:
        settings = _read_settings(folder)
        self.image_size, self.max_length = int(settings["image_size"]), int(settings["max_length"])
        self.calibration = read_calibration(folder)
        self.domain: str | None = settings.get("domain")
        kind = settings["format"]
        if kind == "onnx" and precision == "bf16":
            raise InputError("ONNX Runtime does not compute in bf16: export with --format openvino, or ask for fp32.")
        bf16 = precision == "bf16" or (precision == "auto" and cpu_has_bf16())
        try:
            tokenizer = import_extra("tokenizers").Tokenizer.from_file(str(folder / "tokenizer.json"))
            self.tokenizer = PhraseTokenizer(tokenizer, self.max_length, int(settings.get("pad_id", 0)))
            files = [folder / f"{name}{SUFFIX[kind]}" for name in (IMAGE, PHRASES)]
            graphs = (
                _onnx(files, threads or cpu_threads())
                if kind == "onnx"
                else _openvino(files, threads or cpu_threads(), bf16)
            )
            self._image, self._phrases = graphs
        except InputError:
            raise
        except Exception as error:  # the runtimes raise classes of their own making
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"{folder} cannot be loaded ({reason}): export the run again.") from error

    def encode(self, image: NDArray[np.float32], image_mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Encode images [I, 3, S, S] with pad [I, S, S] -> features [I, ...]."""
        return self._image({"image": image, "image_mask": image_mask})[0]

    def join(self, features: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Put features of several images together in memory of their own."""
        return np.concatenate(features)

    def answer(
        self,
        features: NDArray[np.float32],
        image_mask: NDArray[np.bool_],
        tokens: NDArray[np.int64],
        token_mask: NDArray[np.bool_],
        image_index: NDArray[np.int64],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Answer phrases [P, L] about images `owner` [P] -> box [P, 4] cxcywh in 0..1 of the canvas, score [P]."""
        given = {
            "features": features,
            "image_mask": image_mask,
            "tokens": tokens,
            "token_mask": token_mask,
            "image_index": image_index,
        }
        box, score = self._phrases(given)
        return box.astype(np.float64), score.astype(np.float64)

    def maps(self, kind: str, *_: Any) -> list[NDArray[np.float32]]:
        """Refuse: an exported folder answers boxes and scores only.

        Raises:
            InputError: always.
        """
        raise InputError(f"An exported folder has no {kind} map: ask the run that it was made from.")


def _onnx(files: list[Path], threads: int) -> list[Graph]:
    runtime = import_extra("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads leave the cores to others

    def open_graph(file: Path) -> Graph:
        session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return lambda given: session.run(None, given)

    return [open_graph(file) for file in files]


def _openvino(files: list[Path], threads: int, bf16: bool) -> list[Graph]:
    openvino = import_extra("openvino")
    core = openvino.Core()
    hints = {
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }

    def open_graph(file: Path) -> Graph:
        model = core.compile_model(core.read_model(str(file)), "CPU", hints)

        def run(given: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
            answers = model(given)
            return [answers[port] for port in model.outputs]

        return run

    return [open_graph(file) for file in files]


def _read_settings(folder: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        known = settings["format"] in SUFFIX and settings["image_size"] > 0 and settings["max_length"] > 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / SETTINGS} cannot be read: export the run again.") from error
    if not known:
        raise InputError(f"{folder / SETTINGS} names no format this version runs: export the run again.")
    return settings


def import_extra(name: str) -> ModuleType:
    """Import a package of the `export` extra.

    Raises:
        InputError: it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(f"Exported folders need {name}: pip install 'epmvg[export]'.") from error
