"""A grounder as two ONNX graphs, cut where an image is known and a phrase is not yet: *image* and *phrases*."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from epmvg.inference.runtimes.exported import IMAGE, PHRASES
from epmvg.models.grounder import EncodedImages, Grounder
from epmvg.models.iou_head import raw_confidence


class ImageGraph(nn.Module):
    """image float [I, 3, S, S], pad bool [I, S, S] -> features [I, ...]."""

    def __init__(self, model: Grounder) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, image_mask: Tensor) -> Tensor:
        return self.model.encode_images(image, image_mask).features


class PhraseGraph(nn.Module):
    """Features, mask, tokens, token mask and image index -> box, score.

    The box is float [P, 4], cxcywh in 0..1 of the canvas; the score float [P].
    """

    def __init__(self, model: Grounder) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, features: Tensor, image_mask: Tensor, tokens: Tensor, token_mask: Tensor, image_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        states = self.model.text_encoder(tokens, token_mask)
        output = self.model.query(EncodedImages(features, image_mask), states, token_mask, image_index)
        return output.box, raw_confidence(output)


@torch.no_grad()
def write_onnx(model: Grounder, folder: Path) -> None:
    """Write image.onnx and phrases.onnx into a folder; images, phrases and word pieces may be any number."""
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    model.visual_encoder.fuse_norms()
    images, phrases, pieces = Dim("images"), Dim("phrases"), Dim("pieces", min=2, max=model.max_length)
    image = torch.full((2, 3, model.image_size, model.image_size), 0.5)  # sizes of 1 would be taken for fixed ones
    image_mask = torch.zeros(2, model.image_size, model.image_size, dtype=torch.bool)
    image_mask[:, : model.image_size // 8] = True
    features = model.encode_images(image, image_mask).features
    tokens = torch.ones(3, model.max_length // 2, dtype=torch.int64)
    token_mask = torch.zeros_like(tokens, dtype=torch.bool)
    token_mask[0, -1] = True
    image_index = torch.tensor([0, 1, 1])
    _write(
        ImageGraph(model),
        folder / f"{IMAGE}.onnx",
        {"image": (image, {0: images}), "image_mask": (image_mask, {0: images})},
        ["features"],
    )
    asked = {
        "features": (features, {0: images}),
        "image_mask": (image_mask, {0: images}),
        "tokens": (tokens, {0: phrases, 1: pieces}),
        "token_mask": (token_mask, {0: phrases, 1: pieces}),
        "image_index": (image_index, {0: phrases}),
    }
    _write(PhraseGraph(model), folder / f"{PHRASES}.onnx", asked, ["box", "score"])


def _write(graph: nn.Module, file: Path, given: dict[str, tuple[Tensor, dict[int, Any]]], answers: list[str]) -> None:
    """Write one graph; `given` holds an example of each argument, and its dimensions that may be any number."""
    with quiet():
        program = torch.export.export(
            graph,
            tuple(example for example, _ in given.values()),
            dynamic_shapes=tuple(free for _, free in given.values()),
        )
        torch.onnx.export(
            program,
            f=file,
            input_names=list(given),
            output_names=answers,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what exporters and quantisers say to their makers off the terminal; what fails still raises."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
