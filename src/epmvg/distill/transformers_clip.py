"""Hugging Face folders of a CLIPModel or SiglipModel, with open_clip's method names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from open_clip.constants import INCEPTION_MEAN, INCEPTION_STD
from torch import Tensor, nn
from transformers import CLIPModel, SiglipModel

from epmvg.core.types import InputError
from epmvg.distill.clip_tokenizers import (
    CLIP_VOCABULARY,
    TOKENIZER_FILES,
    Tokenize,
    TransformersTokenizer,
    clip_tokenizer,
)

SHARDS_FILE = "model.safetensors.index.json"
"""Names the files that large weights are divided into."""

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", SHARDS_FILE)
_KINDS: dict[str, type[Any]] = {"clip": CLIPModel, "siglip": SiglipModel}
_PREPROCESS: dict[str, dict[str, Any]] = {
    "clip": {},  # open_clip's defaults are OpenAI's
    "siglip": {"mean": INCEPTION_MEAN, "std": INCEPTION_STD, "resize_mode": "squash"},
}
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


class TransformersClip(nn.Module):
    """A CLIPModel or SiglipModel under open_clip's method names.

    Attributes:
        image_size: Side of the square input of its image encoder, pixels.
        width: E, of its embeddings.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        vision = model.config.vision_config
        self.image_size: int = int(vision.image_size)
        self.patch_size = int(vision.patch_size)
        clip = isinstance(model, CLIPModel)
        self.width: int = int(model.config.projection_dim if clip else vision.hidden_size)
        activations = {str(config.hidden_act) for config in (vision, model.config.text_config)}
        self.quick_gelu = activations == {"quick_gelu"}

    @property
    def logit_scale(self) -> Tensor:
        return cast(Tensor, self.model.logit_scale)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Encode normalized pixels [I, 3, S, S] -> [I, E]."""
        return cast(Tensor, self.model.get_image_features(pixel_values=pixels).pooler_output)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode tokens [P, L] -> [P, E]; causal attention (CLIP) and fixed padding (SigLIP) need no mask."""
        return cast(Tensor, self.model.get_text_features(input_ids=tokens).pooler_output)

    def patches(self, pixels: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return embeddings of images [I, E] and patches [I, h, w, E] in the text's space; None for a SigLIP."""
        if not isinstance(self.model, CLIPModel):
            return None
        vision = self.model.vision_model
        output = vision(pixel_values=pixels)
        patches = self.model.visual_projection(vision.post_layernorm(output.last_hidden_state[:, 1:]))
        side = self.image_size // self.patch_size
        return self.model.visual_projection(output.pooler_output), patches.unflatten(1, (side, side))


def open_transformers(folder: Path) -> tuple[TransformersClip, Tokenize, dict[str, Any]]:
    """Open a Hugging Face folder: the model, its tokenizer, and its preprocessing in open_clip's terms.

    Raises:
        InputError: The folder contains another model, or lacks some weights or a tokenizer.
    """
    kind = str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type"))
    if kind not in _KINDS:
        raise InputError(
            f"{folder} contains a Hugging Face model of type {kind!r}. Give a CLIPModel or SiglipModel (types"
            f" {' and '.join(_KINDS)})."
        )
    model, info = _KINDS[kind].from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    missing = sorted(info["missing_keys"])
    if missing:
        raise InputError(f"The weights in {folder} lack {missing[0]} and {len(missing) - 1} more. Copy them again.")
    tokenize = _tokenizer(folder, kind, model.config.text_config)
    return TransformersClip(model), tokenize, _preprocess(folder, kind)


def _tokenizer(folder: Path, kind: str, text: Any) -> Tokenize:
    length = int(text.max_position_embeddings)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        if kind == "clip" and text.vocab_size == CLIP_VOCABULARY:
            return clip_tokenizer(length)
        raise InputError(f"{folder} has no tokenizer. Copy tokenizer.json and tokenizer_config.json into it.")
    return TransformersTokenizer(folder, length, padding="max_length" if kind == "siglip" else "longest")


def _preprocess(folder: Path, kind: str) -> dict[str, Any]:
    """Translate the image processor's configuration."""
    settings: dict[str, Any] = {}
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            settings = json.loads((folder / name).read_text(encoding="utf-8"))
            settings = settings.get("image_processor", settings)
    found = dict(_PREPROCESS[kind])
    found |= {key: settings[f"image_{key}"] for key in ("mean", "std") if settings.get(f"image_{key}")}
    if settings.get("resample") is not None:
        if settings["resample"] not in _RESAMPLE:
            raise InputError(
                f"{folder} resizes with Pillow's filter {settings['resample']}. Only bilinear (2) and bicubic (3) are"
                " supported."
            )
        found["interpolation"] = _RESAMPLE[settings["resample"]]
    size = settings.get("size")
    if size is not None:
        shortest = (isinstance(size, int) and kind == "clip") or (isinstance(size, dict) and "shortest_edge" in size)
        found["resize_mode"] = "shortest" if shortest else "squash"
    return found
