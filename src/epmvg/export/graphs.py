"""A grounder as two ONNX graphs: *image* encodes images as far as no phrase is needed, *phrases* queries them."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim

from epmvg.core.calibration import CONFIDENCE_FILE
from epmvg.core.extras import optional_imports
from epmvg.core.files import write_json, write_text
from epmvg.core.locate import EXPORT_FILE
from epmvg.core.version import __version__
from epmvg.inference.runtimes.exported import IMAGE, PHRASES, SUFFIX
from epmvg.models.grounder import EncodedImages, Grounder
from epmvg.models.iou_head import raw_confidence

Format = Literal["onnx", "openvino"]

OUTPUTS = ["box", "score", "heatmap", "token_boxes"]
"""Of the graph of phrases; the last two with a dense head only."""


class ImageGraph(nn.Module):
    """image float [I, 3, S, S], image_mask bool [I, S, S] -> features [I, ...]."""

    def __init__(self, model: Grounder) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, image_mask: Tensor) -> Tensor:
        return self.model.encode_images(image, image_mask).features


class PhraseGraph(nn.Module):
    """features [I, ...], image_mask [I, S, S], tokens and token_mask [P, L], image_index [P] -> `OUTPUTS`.

    box float [P, 4] is cxcywh in 0..1 of the input, score float [P] the raw confidence. With a dense head follow its
    heatmap, logits [P, N] over visual tokens, and token_boxes [P, N, 4].
    """

    def __init__(self, model: Grounder) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, features: Tensor, image_mask: Tensor, tokens: Tensor, token_mask: Tensor, image_index: Tensor
    ) -> tuple[Tensor, ...]:
        text_features = self.model.text_encoder(tokens, token_mask)
        output = self.model.query(EncodedImages(features, image_mask), text_features, token_mask, image_index)
        predicted = (output.box, raw_confidence(output), output.heatmap, output.token_boxes)
        return tuple(tensor for tensor in predicted if tensor is not None)


def write_folder(model: Grounder, folder: Path, format: Format) -> dict[str, Any]:
    """Write a model's graphs, tokenizer and settings without any check; the ONNX graphs stay beside OpenVINO's.

    Returns:
        what `export.json` holds.
    """
    folder.mkdir()
    write_onnx(model, folder)
    if model.calibration is not None:
        write_text(folder / CONFIDENCE_FILE, model.calibration.dump())
    model.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "format": "onnx",
        "precision": "fp32",
        "image_size": model.image_size,
        "max_length": model.max_length,
        "pad_id": model.tokenizer.pad_token_id or 0,
        "epmvg": __version__,
        "torch": torch.__version__,
    }
    if model.domain is not None:
        settings["domain"] = model.domain
    write_json(folder / EXPORT_FILE, settings)
    return to_openvino(folder) if format == "openvino" else settings


def to_openvino(folder: Path) -> dict[str, Any]:
    """Write OpenVINO's graphs beside the ONNX graphs of a folder, weights as they are, and return its new settings.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    with optional_imports("--format openvino"):
        import openvino
    core = openvino.Core()  # not `openvino.convert_model`, which sends usage data to its maker
    for name in (IMAGE, PHRASES):
        graph = core.read_model(str(folder / f"{name}{SUFFIX['onnx']}"))
        openvino.save_model(graph, str(folder / f"{name}{SUFFIX['openvino']}"), compress_to_fp16=False)
    settings: dict[str, Any] = json.loads((folder / EXPORT_FILE).read_text(encoding="utf-8")) | {"format": "openvino"}
    write_json(folder / EXPORT_FILE, settings)
    return settings


@torch.no_grad()
def write_onnx(model: Grounder, folder: Path) -> None:
    """Write image.onnx and phrases.onnx into a folder; images, phrases and word pieces are dynamic dimensions."""
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    model.visual_encoder.fuse_norms()
    images, phrases, length = Dim("images"), Dim("phrases"), Dim("length", min=2, max=model.max_length)
    image = torch.full((2, 3, model.image_size, model.image_size), 0.5)  # sizes of 1 would become constants
    image_mask = torch.zeros(2, model.image_size, model.image_size, dtype=torch.bool)
    image_mask[:, : model.image_size // 8] = True
    tokens = torch.ones(3, model.max_length // 2, dtype=torch.int64)
    token_mask = torch.zeros_like(tokens, dtype=torch.bool)
    token_mask[0, -1] = True
    _write(
        ImageGraph(model),
        folder / f"{IMAGE}.onnx",
        {"image": (image, {0: images}), "image_mask": (image_mask, {0: images})},
        ["features"],
    )
    _write(
        PhraseGraph(model),
        folder / f"{PHRASES}.onnx",
        {
            "features": (model.encode_images(image, image_mask).features, {0: images}),
            "image_mask": (image_mask, {0: images}),
            "tokens": (tokens, {0: phrases, 1: length}),
            "token_mask": (token_mask, {0: phrases, 1: length}),
            "image_index": (torch.tensor([0, 1, 1]), {0: phrases}),
        },
        OUTPUTS if model.dense_head is not None else OUTPUTS[:2],
    )


def _write(graph: nn.Module, file: Path, inputs: dict[str, tuple[Tensor, dict[int, Any]]], outputs: list[str]) -> None:
    """Write one graph; `inputs` holds an example of each argument, and its dynamic dimensions."""
    with quiet():
        program = torch.export.export(
            graph,
            tuple(example for example, _ in inputs.values()),
            dynamic_shapes=tuple(dynamic for _, dynamic in inputs.values()),
        )
        torch.onnx.export(
            program,
            f=file,
            input_names=list(inputs),
            output_names=outputs,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings and logs of exporters and quantizers; errors are still raised."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
