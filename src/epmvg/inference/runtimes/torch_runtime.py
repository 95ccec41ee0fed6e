"""A grounder in torch, made ready for answering only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from epmvg.core.hardware import select_device, use_bf16
from epmvg.core.types import GroundingOutput, InputError
from epmvg.models.factory import float32_on_cpu
from epmvg.models.grounder import EncodedImages, Grounder
from epmvg.models.iou_head import raw_confidence
from epmvg.models.text_cache import TextFeatureCache
from epmvg.models.transformer import Attention

TEXT_CACHE_BYTES = 50_000_000
"""2,000 phrases of eight word pieces through BERT-base."""

_MULTIPLIES = (nn.Linear, nn.Conv2d, Attention)
"""Modules whose parameters autocast would turn to bfloat16 in every call."""


class TorchRuntime:
    """Answer with a model whose norms are baked and whose convolutions are channels-last; phrases are remembered.

    Args:
        model: is taken over and changed: it can no longer be trained.
        device: where to compute.
        precision: fp32, bf16, or auto, which is bf16 where the hardware has it.
        compile: let torch.compile make kernels for the shapes met: seconds to minutes at first.
        threads: of torch, in the whole process.
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
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.bf16 = use_bf16(precision, self.device)
        with float32_on_cpu():
            self.model.visual_encoder.fuse_norms()
            self.model.visual_encoder.to(memory_format=torch.channels_last)
            if self.bf16:
                _halve(self.model)
        self.texts = TextFeatureCache(self.model.text_encoder, TEXT_CACHE_BYTES, torch.float32)
        self._encode: Any = self.model.encode_images
        self._answer: Any = self.model.query
        if compile:
            self._encode, self._answer = torch.compile(self._encode), torch.compile(self._answer)

    @torch.inference_mode()
    def encode(self, image: NDArray[np.float32], image_mask: NDArray[np.bool_]) -> Tensor:
        """Encode images [I, 3, S, S] with pad [I, S, S] -> features [I, ...]."""
        with self._autocast():
            features: Tensor = self._encode(self._tensor(image), self._tensor(image_mask)).features
        return features

    @torch.inference_mode()
    def join(self, features: Sequence[Tensor]) -> Tensor:
        """Put features of several images together in memory of their own."""
        return torch.cat(list(features))

    @torch.inference_mode()
    def answer(
        self,
        features: Tensor,
        image_mask: NDArray[np.bool_],
        tokens: NDArray[np.int64],
        token_mask: NDArray[np.bool_],
        image_index: NDArray[np.int64],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Answer phrases [P, L] about images `owner` [P] -> box [P, 4] cxcywh in 0..1 of the canvas, score [P]."""
        output = self._ask(self._answer, features, image_mask, tokens, token_mask, image_index)
        return output.box.cpu().double().numpy(), raw_confidence(output).cpu().double().numpy()

    @torch.inference_mode()
    def maps(
        self,
        kind: Literal["where", "attention"],
        features: Tensor,
        image_mask: NDArray[np.bool_],
        tokens: NDArray[np.int64],
        token_mask: NDArray[np.bool_],
    ) -> list[NDArray[np.float32]]:
        """Return the shares of visual tokens for phrases about one image, [P, side, side] for each map of tokens.

        Raises:
            InputError: the model has no where-map.
        """
        answer = partial(self.model.query, output_attention=kind == "attention")
        output = self._ask(answer, features, image_mask, tokens, token_mask, np.zeros(len(tokens), np.int64))
        if kind == "attention":
            assert output.attention is not None
            shares = output.attention[:, 1 : 1 + self.model.visual_encoder.num_tokens(self.image_size)]
        elif output.heatmap is not None:
            shares = output.heatmap.softmax(-1)
        else:
            raise InputError("This model has no where-map (model.dense_head=false): look at its attention instead.")
        sides = [-(-self.image_size // stride) for stride in self.model.visual_encoder.strides]
        levels = shares.float().cpu().split([side**2 for side in sides], 1)
        return [level.unflatten(1, (side, side)).numpy() for side, level in zip(sides, levels, strict=True)]

    def _ask(
        self,
        answer: Callable[..., GroundingOutput],
        features: Tensor,
        image_mask: NDArray[np.bool_],
        tokens: NDArray[np.int64],
        token_mask: NDArray[np.bool_],
        image_index: NDArray[np.int64],
    ) -> GroundingOutput:
        hidden = self._tensor(token_mask)
        with self._autocast():
            states = self.texts(self._tensor(tokens), hidden)
            return answer(EncodedImages(features, self._tensor(image_mask)), states, hidden, self._tensor(image_index))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)


def _halve(model: nn.Module) -> None:
    """Keep the weights of products in bfloat16, in place, so that autocast need not turn them in every call."""
    for module in model.modules():
        if isinstance(module, _MULTIPLIES):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(torch.bfloat16)
