"""What is timed: images and phrases of the same shape for all, and the runtimes that predict their boxes.

`RUNTIMES` is the one place where a backend is added: a function that yields a `TimedRuntime` per precision.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from epmvg.core.extras import optional_imports
from epmvg.core.hardware import cpu_has_bf16
from epmvg.core.types import InputError
from epmvg.export.graphs import to_openvino, write_folder
from epmvg.inference.runtimes.exported import ExportedRuntime
from epmvg.inference.runtimes.torch_runtime import TorchRuntime
from epmvg.models.factory import create_model
from epmvg.models.text_encoder import TextFeatureCache
from reference import PHRASES
from reference.inputs import computed_in, noise, predict_boxes
from reference.plain import PlainGrounder

CALIBRATION_IMAGES = 8
"""Pictures of noise that int8 takes its ranges from: random weights have no accuracy to lose."""


class Work:
    """A preset with random weights, noise on a 4:3 letterbox, and `PHRASES`."""

    def __init__(self, preset: str) -> None:
        torch.manual_seed(0)
        self.preset = preset
        self.student = create_model(preset).eval()
        self.image, self.image_mask = map(torch.from_numpy, noise(self.student.image_size))

    def image_batch(self, images: int) -> tuple[Tensor, Tensor]:
        """Return image [I, 3, S, S] and pad [I, S, S]."""
        return self.image.repeat(images, 1, 1, 1), self.image_mask.repeat(images, 1, 1)

    def full_length(self, phrases: list[str]) -> tuple[Tensor, Tensor]:
        """Return tokens and their pad, of the full length that the published code pads to."""
        tokens, token_mask = self.student.tokenize(phrases)
        missing = (0, self.student.max_length - tokens.shape[1])
        return torch.nn.functional.pad(tokens, missing), torch.nn.functional.pad(token_mask, missing, value=True)

    def inputs(self, images: int, phrases: int) -> tuple[Tensor, ...]:
        """Return what the student takes: image, pad, tokens, token_mask and image_index."""
        words = self.student.tokenize(PHRASES[:phrases] * images)
        return (*self.image_batch(images), *words, torch.arange(images).repeat_interleave(phrases))

    @torch.inference_mode()
    def flops(self, images: int, phrases: int) -> int:
        """Count the operations of one pass, every phrase's text encoder included."""
        return count_flops(lambda: self.student(*self.inputs(images, phrases)))

    def plain(self) -> PlainGrounder:
        return PlainGrounder(self.student).eval()

    def predict_plainly(self, plain: PlainGrounder, phrases: int) -> Tensor:
        """Predict boxes [P, 4] of one image, one call a phrase: what the published evaluation does at batch size 1."""
        queries = PHRASES[:phrases]
        return torch.cat([plain(self.image, self.image_mask, *self.full_length([phrase])) for phrase in queries])


@dataclass(frozen=True, slots=True)
class TimedRuntime:
    """One runtime in one precision."""

    backend: str  # torch, onnx or openvino
    precision: str  # fp32, bf16 or int8
    predict: Callable[[int, int], NDArray[np.float64]]  # images, phrases of each -> boxes [I * P, 4] as `predict_boxes`
    size_mb: float  # of what is loaded
    folder: Path | None = None  # that was exported


def torch_runtimes(work: Work, folder: Path) -> Iterator[TimedRuntime]:
    """The torch runtime of `Predictor`, in float32, and in bfloat16 where the processor has it."""
    for precision in ("fp32", "bf16") if cpu_has_bf16() else ("fp32",):
        backend = TorchRuntime(copy.deepcopy(work.student), precision=precision)
        kept = backend.model.state_dict().values()
        size = sum(part.numel() * part.element_size() for part in kept) / 1e6
        yield TimedRuntime("torch", precision, partial(_predict_uncached, backend), round(size, 1))


def _predict_uncached(backend: TorchRuntime, images: int, phrases: int) -> NDArray[np.float64]:
    """Predict with an empty text cache."""
    backend.texts = TextFeatureCache(backend.model.text_encoder)
    return predict_boxes(backend, images, phrases)


def onnx_runtimes(work: Work, folder: Path) -> Iterator[TimedRuntime]:
    """The exported graphs in ONNX Runtime, in float32 and int8."""
    for precision in ("fp32", "int8"):
        yield _exported(_onnx_folder(work, folder, precision), "onnx", precision)


def openvino_runtimes(work: Work, folder: Path) -> Iterator[TimedRuntime]:
    """The exported graphs in OpenVINO, in float32, in bfloat16 where the processor has it, and in int8."""
    for precision in ("fp32", "int8"):
        twin = folder / f"openvino-{precision}"
        shutil.copytree(_onnx_folder(work, folder, precision), twin)
        to_openvino(twin)
        for graph in twin.glob("*.onnx"):
            graph.unlink()
        yield _exported(twin, "openvino", precision)
        if precision == "fp32" and cpu_has_bf16():
            yield _exported(twin, "openvino", "bf16")


def _exported(folder: Path, backend: str, precision: str) -> TimedRuntime:
    graphs = sum(file.stat().st_size for kind in ("*.onnx", "*.xml", "*.bin") for file in folder.glob(kind)) / 1e6
    ready = ExportedRuntime(folder, precision=computed_in(precision))
    return TimedRuntime(backend, precision, partial(predict_boxes, ready), round(graphs, 1), folder)


def _onnx_folder(work: Work, folder: Path, precision: str) -> Path:
    """Export a student to ONNX, once: int8 is made of float, and OpenVINO's graphs of both."""
    target = folder / f"onnx-{precision}"
    if target.exists():
        return target
    with optional_imports("An exported runtime"):
        import onnxscript  # noqa: F401  before the folder is made
    if precision == "fp32":
        write_folder(work.student, target, "onnx")
    else:
        from epmvg.export.int8 import quantize

        shutil.copytree(_onnx_folder(work, folder, "fp32"), target)
        quantize(target, (noise(work.student.image_size, seed) for seed in range(1, 1 + CALIBRATION_IMAGES)))
    return target


RUNTIMES: dict[str, Callable[[Work, Path], Iterator[TimedRuntime]]] = {
    "torch": torch_runtimes,
    "onnx": onnx_runtimes,
    "openvino": openvino_runtimes,
}


def available_runtimes(
    work: Work, folder: Path, report_skipped: Callable[[str], None], backends: Iterable[str] = RUNTIMES
) -> list[TimedRuntime]:
    """Return every runtime that this installation has for a preset; say which it lacks, and why, to `report_skipped`.

    Args:
        work: the preset's.
        folder: for what is exported, empty or with what was exported of this work; it must stay while they are used.
        report_skipped: called with a sentence.
        backends: of `RUNTIMES`.
    """
    offered: list[TimedRuntime] = []
    for backend in backends:
        try:
            offered += RUNTIMES[backend](work, folder)
        except InputError as error:
            report_skipped(f"{backend} of {work.preset} is left out. {error}")
    return offered


def count_flops(run: Callable[[], object]) -> int:
    """Count the operations of convolutions, matrix products and attention; a multiplication and an addition are two."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # torch counts CUDA's alone

    def of_attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(q, k, v))

    with FlopCounterMode(display=False, custom_mapping={attention: of_attention}) as counter:
        run()
    return int(counter.get_total_flops())
