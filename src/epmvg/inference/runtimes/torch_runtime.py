"""The torch runtime: a grounder prepared for inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from epmvg.core.hardware import select_device, use_bf16
from epmvg.core.types import GroundingOutput
from epmvg.inference.runtimes.protocol import GrounderRuntime, ModelInputs, ModelOutput
from epmvg.models.factory import float32_on_cpu
from epmvg.models.grounder import EncodedImages, Grounder
from epmvg.models.iou_head import raw_confidence
from epmvg.models.text_encoder import TextFeatureCache
from epmvg.models.transformer import Attention

TEXT_CACHE_BYTES = 50_000_000
"""2,000 phrases of eight word pieces through BERT-base."""

_MATRIX_MODULES = (nn.Linear, nn.Conv2d, Attention)
"""Modules whose parameters autocast would convert to bfloat16 in every call."""


class TorchRuntime(GrounderRuntime):
    """Runs a model with fused batch norms, convolutions in channels-last, and cached text features.

    Args:
        model: it is changed, and can no longer be trained.
        device: device of torch, or "auto".
        precision: fp32, bf16, or auto, which is bf16 where the hardware has it.
        compile: use torch.compile, which takes seconds to minutes for each new shape.
        threads: number of threads of torch, in the whole process.
    """

    def __init__(
        self,
        model: Grounder,
        *,
        device: str = "cpu",
        precision: str = "fp32",
        compile: bool = False,
        threads: int | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.image_size, self.max_length, self.calibration = model.image_size, model.max_length, model.calibration
        self.domain, self.tokenizer = model.domain, model.phrase_tokenizer()
        self.device = select_device(device)
        self.bf16 = use_bf16(precision, self.device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        with float32_on_cpu():
            self.model.visual_encoder.fuse_norms()
            self.model.visual_encoder.to(memory_format=torch.channels_last)
            if self.bf16:
                _convert_to_bf16(self.model)
        self.texts = TextFeatureCache(self.model.text_encoder, TEXT_CACHE_BYTES, torch.float32)
        self._encode: Any = self.model.encode_images
        self._query: Any = self.model.query
        if compile:
            self._encode, self._query = torch.compile(self._encode), torch.compile(self._query)

    @torch.inference_mode()
    def encode_pixels(self, images: NDArray[np.float32], image_mask: NDArray[np.bool_]) -> Tensor:
        """Encode images [I, 3, S, S] with image_mask [I, S, S] -> features [I, ...]."""
        with self._autocast():
            features: Tensor = self._encode(self._tensor(images), self._tensor(image_mask)).features
        return features

    @torch.inference_mode()
    def concatenate(self, features: Sequence[Tensor]) -> Tensor:
        """Concatenate features of several images, in memory of their own."""
        return torch.cat(list(features))

    def forward(self, inputs: ModelInputs) -> ModelOutput:
        """Predict P phrases in I encoded images."""
        output = self._forward(self._query, inputs)
        dense = (output.heatmap, output.token_boxes)
        heatmap, token_boxes = (None if each is None else each.float().cpu().numpy() for each in dense)
        boxes, scores = output.box.cpu().double().numpy(), raw_confidence(output).cpu().double().numpy()
        return ModelOutput(boxes, scores, heatmap, token_boxes)

    def attention(self, inputs: ModelInputs) -> list[NDArray[np.float32]]:
        """Return the attention of [REG] to visual tokens, [P, side, side] for each feature level."""
        output = self._forward(self.model.query, inputs, output_attention=True)
        assert output.attention is not None
        sides = self.model.visual_encoder.grid_sizes(self.image_size)
        weights = output.attention[:, 1 : 1 + sum(side**2 for side in sides)].float().cpu()
        levels = weights.split([side**2 for side in sides], 1)
        return [level.unflatten(1, (side, side)).numpy() for side, level in zip(sides, levels, strict=True)]

    @torch.inference_mode()
    def _forward(self, query: Callable[..., GroundingOutput], inputs: ModelInputs, **options: Any) -> GroundingOutput:
        token_mask = self._tensor(inputs.token_mask)
        with self._autocast():
            states = self.texts(torch.from_numpy(inputs.tokens), torch.from_numpy(inputs.token_mask))
            images = EncodedImages(inputs.features, self._tensor(inputs.image_mask))
            return query(images, states, token_mask, self._tensor(inputs.image_index), **options)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)


def _convert_to_bf16(model: nn.Module) -> None:
    """Convert the weights of matrix products to bfloat16, in place, so that autocast need not do it in every call."""
    for module in model.modules():
        if isinstance(module, _MATRIX_MODULES):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(torch.bfloat16)
