"""Eight-bit graphs: the image's quantised statically after looking at photos, the phrase's text encoder dynamically.

Weights are symmetric and per channel, activations of the image graph asymmetric with ranges seen while calibrating.
What reads the boxes, and all that attends, stays in float; so do the first convolution and depthwise ones.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from epmvg.export.graphs import quiet
from epmvg.inference.runtimes.exported import IMAGE, PHRASES

Canvas = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""image [1, 3, S, S] and pad [1, S, S]."""

TEXT = "model.text_encoder"
"""Whose products are quantised in the phrase graph."""


class _Photos(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, canvases: Iterable[Canvas]) -> None:
        self._left = iter(canvases)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        image_size = next(self._left, None)
        return None if image_size is None else {"image": image_size[0], "image_mask": image_size[1]}


def quantize(folder: Path, canvases: Iterable[Canvas]) -> None:
    """Replace image.onnx and phrases.onnx of a folder by eight-bit ones, calibrated on canvases."""
    image, phrases = folder / f"{IMAGE}.onnx", folder / f"{PHRASES}.onnx"
    weights: dict[str, Any] = {"per_channel": True, "weight_type": QuantType.QInt8}
    weights["extra_options"] = {"MatMulConstBOnly": True}
    with quiet():
        prepared = _prepared(image)
        quantize_static(
            prepared,
            image,
            _Photos(canvases),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MatMul"],
            nodes_to_exclude=_kept_in_float(prepared),
            activation_type=QuantType.QUInt8,
            **weights,
        )
        prepared.unlink()
        text = _products(phrases, TEXT)
        prepared = _prepared(phrases)
        quantize_dynamic(
            prepared,
            phrases,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=text,
            **weights,
        )
        prepared.unlink()


def _prepared(file: Path) -> Path:
    """Write a graph with its shapes known and its constants folded beside it, as quantisation wants it."""
    prepared = file.with_suffix(".prepared.onnx")
    model = onnx.load(file)
    del model.graph.value_info[:]  # shapes are inferred anew: of torch 2.8's a few are wrong
    onnx.save(model, file)
    quant_pre_process(file, prepared, skip_symbolic_shape=True)
    return prepared


def _kept_in_float(file: Path) -> list[str]:
    """Names of the convolution that reads the picture and of those that take each channel by itself.

    They are a few of the products and, where a network is built of them, most of the loss (docs/export.md).
    """
    first, *others = (node for node in onnx.load(file).graph.node if node.op_type == "Conv")
    grouped = [node for node in others if any(given.name == "group" and given.i > 1 for given in node.attribute)]
    return [node.name for node in (first, *grouped)]


def _products(file: Path, scope: str) -> list[str]:
    """Names of the matrix products that a module and its parts compute."""
    names = []
    for node in onnx.load(file).graph.node:
        scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "[]")
        if node.op_type == "MatMul" and scope in ast.literal_eval(scopes):
            names.append(node.name)
    return names
