"""Models of every kind, random inputs for them, and the comparison of two outputs."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from epmvg.core.geometry import Letterbox
from epmvg.core.types import GroundingOutput
from epmvg.models.factory import create_model
from epmvg.models.grounder import Grounder

PHRASES = ["the red square", "a cat", "the man on the left of the blue car", "dog"]


def random_inputs(model: Grounder, images: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    side = model.image_size
    image = torch.rand(images, 3, side, side, generator=generator)
    image_mask = torch.zeros(images, side, side, dtype=torch.bool)
    image_mask[0, : side // 4] = True
    image_mask[0, -side // 4 :] = True
    tokens, token_mask = model.tokenize(PHRASES)
    return image, image_mask, tokens, token_mask, torch.tensor([0, 1, 0, 1])


def letterboxed(size: tuple[int, int], side: int) -> tuple[Tensor, Tensor]:
    """Return an image of this size, padded to a square: image [1, 3, S, S], image_mask [1, S, S]."""
    letterbox = Letterbox.fit(*size, side)
    image, image_mask = letterbox.pad(letterbox.resize(Image.new("RGB", size, (200, 30, 90))))
    return torch.from_numpy(image)[None], torch.from_numpy(image_mask)[None]


def assert_close(a: GroundingOutput, b: GroundingOutput, rows: slice | Tensor = slice(None)) -> None:
    torch.testing.assert_close(a.box[rows], b.box, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(a.visual[rows], b.visual, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(a.text[rows], b.text, atol=1e-5, rtol=1e-4)


EXTENSIONS: dict[str, Any] = {
    "dense_head": True,
    "similarity": True,
    "pre_fusion_norm": True,
    "vls": "mean",
    "position": "sine",
}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "paper": ("tiny-resnet", {}),
    "extensions": ("tiny-resnet", EXTENSIONS),
    "swin": ("tiny-swin", {"visual_encoder": {"gates": "off"}}),
    "query-aware": ("tiny-swin", {}),
    "query-aware extensions": ("tiny-swin", EXTENSIONS | {"visual_encoder": {"strides": [8]}}),
}


def create(kind: str) -> Grounder:
    """Create a model of `MODELS` in eval mode, whose gates depend on the phrase."""
    torch.manual_seed(0)
    name, settings = MODELS[kind]
    model = create_model(name, **settings).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(".V"):  # initialized with 0, where gates do not depend on the phrase
            torch.nn.init.normal_(parameter, std=0.3)
    return model
