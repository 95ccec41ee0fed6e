"""Int8 graphs: the image graph quantized statically, calibrated on images, text encoder and fusion dynamically.

Weights are symmetric and per channel, word embeddings per row, activations of the image graph asymmetric. The heads
stay in float, and so do the first convolution and the depthwise ones.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from epmvg.core.boxes import paired_iou
from epmvg.core.geometry import Letterbox
from epmvg.core.images import open_image
from epmvg.core.types import InputError, Sample
from epmvg.data.loader import group_by_image
from epmvg.export.graphs import quiet, to_openvino
from epmvg.export.parity import largest_difference
from epmvg.inference.predictor import Predictor
from epmvg.inference.runtimes.exported import IMAGE, PHRASES, ExportedRuntime

Input = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""image [1, 3, S, S] and image_mask [1, S, S]."""

MAX_ACCURACY_DROP = 0.005
"""Acc@0.5 that int8 may lose."""

MIN_TABLE_ROWS = 1000
"""Smaller embeddings (of positions, of types) stay in float."""

_DYNAMIC = {"model.text_encoder", "model.fusion"}
"""Modules whose matrix products are quantized dynamically."""


def quantize_and_evaluate(
    float_folder: Path,
    folder: Path,
    settings: dict[str, Any],
    images: Sequence[Path],
    samples: Sequence[Sample],
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Quantize a copy of a float export and evaluate both; return the settings that differ.

    Args:
        float_folder, settings: the float export.
        folder: its copy.
        images: to calibrate on.
        samples: to evaluate, of other images.
        report: called with a line about each measurement.

    Raises:
        InputError: predictions are not finite, or int8 loses more than `MAX_ACCURACY_DROP`.
    """
    size = settings["image_size"]
    quantize(folder, (_read_input(image, size) for image in images))
    if settings["format"] == "openvino":
        to_openvino(folder)
    box, confidence = largest_difference(ExportedRuntime(float_folder), ExportedRuntime(folder))
    report(f"largest difference of int8 from float: box edge {box:.2f} of {size} px, confidence {confidence:.3f}")
    if not np.isfinite([box, confidence]).all():
        raise InputError("The int8 graphs predict NaN or Inf. Calibrate on other images.")
    before, after = (_ious(each, samples) for each in (float_folder, folder))
    accuracy = {"fp32": float((before >= 0.5).mean()), "int8": float((after >= 0.5).mean())}
    report(f"Acc@0.5 on {len(samples)} phrases: {accuracy['fp32']:.4f} in float, {accuracy['int8']:.4f} in int8")
    drop = accuracy["fp32"] - accuracy["int8"]
    if round(drop, 9) > MAX_ACCURACY_DROP:
        raise InputError(
            f"int8 loses {drop:.4f} of Acc@0.5 ({accuracy['fp32']:.4f} to {accuracy['int8']:.4f}), more than "
            f"{MAX_ACCURACY_DROP}. Calibrate on more images like those that it will be used on."
        )
    scores = {"n": len(samples), "acc50": accuracy}
    return {"precision": "int8", "calibrated_on": len(images), "int8_difference_px": round(box, 3), "scores": scores}


def quantize(folder: Path, inputs: Iterable[Input]) -> None:
    """Replace image.onnx and phrases.onnx of a folder by int8 graphs, calibrated on inputs."""
    image, phrases = folder / f"{IMAGE}.onnx", folder / f"{PHRASES}.onnx"
    weights: dict[str, Any] = {"per_channel": True, "weight_type": QuantType.QInt8}
    weights["extra_options"] = {"MatMulConstBOnly": True}
    with quiet():
        prepared = _prepare(image)
        quantize_static(
            prepared,
            image,
            _InputReader(inputs),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MatMul"],
            nodes_to_exclude=_first_and_depthwise(prepared),
            activation_type=QuantType.QUInt8,
            **weights,
        )
        prepared.unlink()
        nodes = _products_of(phrases, _DYNAMIC)
        prepared = _prepare(phrases)
        quantize_dynamic(prepared, phrases, op_types_to_quantize=["MatMul"], nodes_to_quantize=nodes, **weights)
        prepared.unlink()
        _quantize_embeddings(phrases)


class _InputReader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, inputs: Iterable[Input]) -> None:
        self._inputs = iter(inputs)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        following = next(self._inputs, None)
        return None if following is None else {"image": following[0], "image_mask": following[1]}


def _read_input(image: Path, size: int) -> Input:
    opened = open_image(image)
    letterbox = Letterbox.fit(*opened.size, size)
    pixels, mask = letterbox.pad(letterbox.resize(opened))
    return pixels[None], mask[None]


def _ious(folder: Path, samples: Sequence[Sample]) -> NDArray[np.float64]:
    """Return the IoU of each predicted box of an exported folder, [n]; every image is encoded once."""
    predictor, predicted, targets = Predictor(folder), [], []
    for image, numbers in group_by_image(samples).items():
        predicted += predictor.predict_boxes(image, [samples[number].phrase for number in numbers]).boxes.tolist()
        targets += [samples[number].box for number in numbers]
    return paired_iou(*(torch.tensor(each, dtype=torch.float64) for each in (predicted, targets))).numpy()


def _prepare(file: Path) -> Path:
    """Write a graph with its shapes inferred and its constants folded beside it, as quantization needs it."""
    prepared = file.with_suffix(".prepared.onnx")
    model = onnx.load(file)
    del model.graph.value_info[:]  # shapes are inferred anew: a few of torch 2.8's are wrong
    onnx.save(model, file)
    quant_pre_process(file, prepared, skip_symbolic_shape=True)
    return prepared


def _first_and_depthwise(file: Path) -> list[str]:
    """Return the names of the first convolution and of the depthwise ones: little work, much loss (docs/export.md)."""
    first, *others = (node for node in onnx.load(file).graph.node if node.op_type == "Conv")
    grouped = [node for node in others if any(given.name == "group" and given.i > 1 for given in node.attribute)]
    return [node.name for node in (first, *grouped)]


def _quantize_embeddings(file: Path) -> None:
    """Store tables of a thousand rows or more as int8 with a scale per row, multiplied after rows were taken."""
    model = onnx.load(file)
    graph, tables = model.graph, {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in graph.node:
        table = tables.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None or len(table.dims) != 2 or table.dims[0] < MIN_TABLE_ROWS:
            nodes.append(node)
            continue
        values = numpy_helper.to_array(table)
        scale = np.maximum(np.abs(values).max(1, keepdims=True) / 127, np.finfo(np.float32).tiny).astype(np.float32)
        parts = {"int8": np.rint(values / scale).astype(np.int8), "scale": scale}
        graph.initializer.remove(table)
        for part, array in parts.items():
            graph.initializer.append(numpy_helper.from_array(array, f"{table.name}:{part}"))
            nodes.append(
                helper.make_node("Gather", [f"{table.name}:{part}", node.input[1]], [f"{table.name}:{part}_rows"])
            )
        rows = [f"{table.name}:{part}" for part in ("int8_rows", "float_rows", "scale_rows")]
        nodes.append(helper.make_node("Cast", rows[:1], rows[1:2], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", rows[1:], node.output))
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, file)


def _products_of(file: Path, modules: Set[str]) -> list[str]:
    """Return the names of the matrix products of modules and their parts."""
    names = []
    for node in onnx.load(file).graph.node:
        scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "[]")
        if node.op_type == "MatMul" and modules & set(ast.literal_eval(scopes)):
            names.append(node.name)
    return names
