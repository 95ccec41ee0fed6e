"""The protocol of a runtime behind `Predictor`, and the base class of those that run this package's models."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from epmvg.core.calibration import Calibration
from epmvg.core.geometry import Letterbox
from epmvg.core.tokenizer import PhraseTokenizer, Tokens
from epmvg.core.types import InputError
from epmvg.inference.candidates import Candidates, candidate_boxes, candidate_confidences

MapKind = Literal["heatmap", "attention"]
Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class RuntimeOutput:
    """The predictions for P phrases."""

    boxes: NDArray[np.float64]  # [P, 4], xyxy in pixels of the upright image
    scores: NDArray[np.float64]  # [P], calibrated where the runtime has a calibration
    truncated: NDArray[np.bool_]  # [P], the phrase is longer than `max_length`
    unknown: NDArray[np.bool_]  # [P], no word of the phrase is in the vocabulary
    candidates: list[Candidates] | None = None  # P of them if several boxes were requested

    @staticmethod
    def join(parts: Sequence[RuntimeOutput]) -> RuntimeOutput:
        """Return the predictions of several passes, one after the other; at least one is given."""
        candidates = None if parts[0].candidates is None else [one for part in parts for one in part.candidates or []]
        return RuntimeOutput(
            np.concatenate([part.boxes for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.truncated for part in parts]),
            np.concatenate([part.unknown for part in parts]),
            candidates,
        )

    def select(self, indices: NDArray[np.int64]) -> RuntimeOutput:
        """Return the predictions of some phrases."""
        candidates = None if self.candidates is None else [self.candidates[number] for number in indices]
        return RuntimeOutput(
            self.boxes[indices], self.scores[indices], self.truncated[indices], self.unknown[indices], candidates
        )


class Runtime(Protocol):
    """A grounder behind `Predictor`: PIL images and phrases in, boxes out.

    Preprocessing and tokenization are its own, so any grounder can be a runtime. Encoded images are any objects with
    `size`, the (width, height) that boxes refer to, and `nbytes`, their memory.
    """

    max_length: int  # word pieces of a phrase
    calibration: Calibration | None
    domain: str | None  # what the model was trained to recognize, None where it is not stated

    @property
    def image_size(self) -> int | None:
        """Side of the square network input, pixels; None where the input is of another shape."""

    def encode(self, images: Sequence[Image.Image], sizes: Sequence[Size]) -> Sequence[Any]:
        """Encode I upright RGB images as far as no phrase is needed; `sizes` differ from theirs if they are reduced."""

    def query(
        self, encoded: Sequence[Any], phrases: Sequence[str], image_index: NDArray[np.int64], *, top_k: int = 1
    ) -> RuntimeOutput:
        """Predict the boxes of P phrases, each in the image `image_index` [P] of `encoded`.

        With `top_k` > 1 the output has up to so many candidates of each phrase, the predicted box first.
        """

    def maps(self, kind: MapKind, encoded: Any, phrases: Sequence[str]) -> list[NDArray[np.float32]]:
        """Return a map over one image per phrase, [height, width] with maximum 1, or raise InputError without one."""


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """Features of one letterboxed image."""

    letterbox: Letterbox
    image_mask: NDArray[np.bool_]  # [1, S, S], True marks padding
    features: Any  # [1, ...], an array or tensor

    @property
    def size(self) -> Size:
        """(width, height) of the image that boxes refer to."""
        return round(self.letterbox.width), round(self.letterbox.height)

    @property
    def nbytes(self) -> int:
        """Memory of mask and features."""
        return int(self.image_mask.nbytes + self.features.nbytes)


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """P tokenized phrases and the features of the I images that they query."""

    features: Any  # [I, ...]
    image_mask: NDArray[np.bool_]  # [I, S, S]
    tokens: NDArray[np.int64]  # [P, L]
    token_mask: NDArray[np.bool_]  # [P, L]
    image_index: NDArray[np.int64]  # [P]

    def select(self, number: int) -> ModelInputs:
        """Return one phrase, without padding, and the features of its image."""
        image, width = self.image_index[number], int((~self.token_mask[number]).sum())
        return ModelInputs(
            self.features[image : image + 1],
            self.image_mask[image : image + 1],
            self.tokens[number : number + 1, :width],
            self.token_mask[number : number + 1, :width],
            np.zeros(1, np.int64),
        )


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """Outputs for P phrases; boxes are cxcywh in 0..1 of the network input."""

    boxes: NDArray[np.float64]  # [P, 4]
    scores: NDArray[np.float64]  # [P], raw confidence
    heatmap: NDArray[np.float32] | None = None  # [P, N] logits over the visual tokens of a square grid
    token_boxes: NDArray[np.float32] | None = None  # [P, N, 4]


class GrounderRuntime(ABC):
    """Runs a model of this package: letterboxes images, tokenizes phrases, and converts boxes."""

    image_size: int
    max_length: int
    tokenizer: PhraseTokenizer
    calibration: Calibration | None
    domain: str | None

    @abstractmethod
    def encode_pixels(self, images: NDArray[np.float32], image_mask: NDArray[np.bool_]) -> Any:
        """Encode images [I, 3, S, S] in 0..1 with image_mask [I, S, S] -> features [I, ...]."""

    @abstractmethod
    def concatenate(self, features: Sequence[Any]) -> Any:
        """Concatenate features of several images, in memory of their own."""

    @abstractmethod
    def forward(self, inputs: ModelInputs) -> ModelOutput:
        """Predict P phrases in I encoded images."""

    @abstractmethod
    def attention(self, inputs: ModelInputs) -> list[NDArray[np.float32]]:
        """Return the attention of [REG] to visual tokens, [P, side, side] for each feature level.

        Raises:
            InputError: this runtime has none.
        """

    def encode(self, images: Sequence[Image.Image], sizes: Sequence[Size]) -> list[EncodedImage]:
        """Encode I images; see `Runtime.encode`."""
        letterboxes = [Letterbox.fit(*size, self.image_size) for size in sizes]
        inputs = [box.pad(box.resize(image)) for box, image in zip(letterboxes, images, strict=True)]
        pixels, masks = (np.stack(arrays) for arrays in zip(*inputs, strict=True))
        features = self.encode_pixels(pixels, masks)
        return [
            EncodedImage(letterbox, masks[i : i + 1].copy(), self.concatenate([features[i : i + 1]]))
            for i, letterbox in enumerate(letterboxes)  # copies: a slice would keep the whole batch in memory
        ]

    def query(
        self,
        encoded: Sequence[EncodedImage],
        phrases: Sequence[str],
        image_index: NDArray[np.int64],
        *,
        top_k: int = 1,
    ) -> RuntimeOutput:
        """Predict the boxes of P phrases; see `Runtime.query`. Without a dense head each has one candidate."""
        features = encoded[0].features if len(encoded) == 1 else self.concatenate([one.features for one in encoded])
        masks = np.concatenate([one.image_mask for one in encoded])
        output, tokens = self.query_features(features, masks, phrases, image_index)
        boxes = np.empty_like(output.boxes)
        for number, one in enumerate(encoded):
            own = image_index == number
            boxes[own] = one.letterbox.to_image(output.boxes[own])
        scores = output.scores if self.calibration is None else self.calibration(output.scores)
        candidates = None
        if top_k > 1:
            candidates = [
                _candidates(output, number, encoded[image].letterbox, float(scores[number]), top_k)
                for number, image in enumerate(image_index)
            ]
        return RuntimeOutput(boxes, scores, tokens.truncated, tokens.unknown, candidates)

    def query_features(
        self, features: Any, image_mask: NDArray[np.bool_], phrases: Sequence[str], image_index: NDArray[np.int64]
    ) -> tuple[ModelOutput, Tokens]:
        """Query features [I, ...] with P phrases -> output and tokens."""
        tokens = self.tokenizer(phrases)
        return self.forward(ModelInputs(features, image_mask, tokens.ids, tokens.padding, image_index)), tokens

    def maps(self, kind: MapKind, encoded: EncodedImage, phrases: Sequence[str]) -> list[NDArray[np.float32]]:
        """Return a map over one image per phrase; see `Runtime.maps`."""
        tokens = self.tokenizer(phrases)
        image_index = np.zeros(len(phrases), np.int64)
        inputs = ModelInputs(encoded.features, encoded.image_mask, tokens.ids, tokens.padding, image_index)
        levels = self.attention(inputs) if kind == "attention" else [self._heatmap(inputs)]
        return [_resize_to_image([level[i] for level in levels], encoded) for i in range(len(phrases))]

    def _heatmap(self, inputs: ModelInputs) -> NDArray[np.float32]:
        """Return the probability of each visual token, [P, side, side]."""
        logits = self.forward(inputs).heatmap
        if logits is None:
            raise InputError("This model has no heatmap. Use one with a dense head (model.dense_head=true).")
        side = math.isqrt(logits.shape[1])
        weights: NDArray[np.float32] = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return weights.reshape(-1, side, side)


def _candidates(output: ModelOutput, number: int, letterbox: Letterbox, score: float, top_k: int) -> Candidates:
    """Return the candidates of phrase `number`, xyxy in pixels of the image, with their confidences."""
    if output.heatmap is None or output.token_boxes is None:
        return Candidates(letterbox.to_image(output.boxes[number : number + 1]), np.array([score]))
    boxes, masses = candidate_boxes(
        output.heatmap[number], output.token_boxes[number], output.boxes[number], top_k=top_k
    )
    return Candidates(letterbox.to_image(boxes), candidate_confidences(score, masses))


def _resize_to_image(levels: Sequence[NDArray[np.float32]], encoded: EncodedImage) -> NDArray[np.float32]:
    """Add up the weights of visual tokens [side, side] of several feature levels over the image -> [height, width]."""
    side = encoded.letterbox.side
    total = np.zeros(encoded.size[::-1], np.float32)
    for level in levels:
        density = Image.fromarray(level * level.size)  # the weight of a coarse token covers more pixels
        content = density.resize((side, side), Image.Resampling.BICUBIC).crop(encoded.letterbox.content)
        total += np.asarray(content.resize(encoded.size, Image.Resampling.BILINEAR))
    np.maximum(total, 0, out=total)
    total /= max(float(total.max()), 1e-9)
    return total
