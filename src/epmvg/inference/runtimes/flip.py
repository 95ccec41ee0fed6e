"""Flip averaging: a grounder reads each image and its mirror image, and their outputs become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epmvg.core.tokenizer import Tokens
from epmvg.data.side_words import swap_sides
from epmvg.inference.candidates import median_boxes
from epmvg.inference.runtimes.protocol import GrounderRuntime, ModelInputs, ModelOutput

SHARPENING = 1.4
"""Factor of the heatmaps' logits; two views spread more than one (1.25). Chosen on val (docs/results.md)."""


@dataclass(frozen=True, slots=True)
class Views:
    """Features of images and of their mirror images, [I, ...] each."""

    plain: Any
    mirrored: Any

    @property
    def nbytes(self) -> int:
        """Memory of both."""
        return int(self.plain.nbytes + self.mirrored.nbytes)

    def __getitem__(self, index: slice) -> Views:
        return Views(self.plain[index], self.mirrored[index])


class FlipRuntime(GrounderRuntime):
    """Runs another runtime on each image and on its mirror image, for which left and right in phrases are swapped.

    The box is the median over the per-token boxes of both views, or without a dense head the mean of their boxes; the
    confidence is the mean. Maps are those of the image alone.

    Args:
        runtime: it computes, at twice the cost.
    """

    def __init__(self, runtime: GrounderRuntime) -> None:
        self.runtime = runtime
        self.image_size, self.max_length, self.tokenizer = runtime.image_size, runtime.max_length, runtime.tokenizer
        self.calibration, self.domain = runtime.calibration, runtime.domain

    def encode_pixels(self, images: NDArray[np.float32], image_mask: NDArray[np.bool_]) -> Views:
        """Encode images [I, 3, S, S] with image_mask [I, S, S], and their mirror images."""
        mirrored = self.runtime.encode_pixels(_mirror(images), _mirror(image_mask))
        return Views(self.runtime.encode_pixels(images, image_mask), mirrored)

    def concatenate(self, features: Sequence[Views]) -> Views:
        """Concatenate the features of several images, in memory of their own."""
        plain = self.runtime.concatenate([views.plain for views in features])
        return Views(plain, self.runtime.concatenate([views.mirrored for views in features]))

    def query_features(
        self, features: Views, image_mask: NDArray[np.bool_], phrases: Sequence[str], image_index: NDArray[np.int64]
    ) -> tuple[ModelOutput, Tokens]:
        """Query both views with P phrases -> one output, with the tokens of both, and the word pieces."""
        plain, tokens = self.runtime.query_features(features.plain, image_mask, phrases, image_index)
        swapped = [swap_sides(phrase) for phrase in phrases]
        mirrored, _ = self.runtime.query_features(features.mirrored, _mirror(image_mask), swapped, image_index)
        return average(plain, mirrored), tokens

    def forward(self, inputs: ModelInputs) -> ModelOutput:
        """Predict P phrases in I images as they are."""
        return self.runtime.forward(replace(inputs, features=inputs.features.plain))

    def attention(self, inputs: ModelInputs) -> list[NDArray[np.float32]]:
        """Return the attention of [REG] to the images as they are."""
        return self.runtime.attention(replace(inputs, features=inputs.features.plain))


def average(plain: ModelOutput, mirrored: ModelOutput) -> ModelOutput:
    """Combine the outputs for images and for their mirror images; the heatmap is log-probabilities [P, 2 N]."""
    scores = (plain.scores + mirrored.scores) / 2
    if plain.heatmap is None or mirrored.heatmap is None or plain.token_boxes is None or mirrored.token_boxes is None:
        return ModelOutput((plain.boxes + _mirror_boxes(mirrored.boxes)) / 2, scores)
    heatmap = np.concatenate([_log_softmax(plain.heatmap), _log_softmax(mirrored.heatmap)], 1)
    token_boxes = np.concatenate([plain.token_boxes, _mirror_boxes(mirrored.token_boxes)], 1)
    return ModelOutput(median_boxes(heatmap * SHARPENING, token_boxes), scores, heatmap, token_boxes)


def _mirror(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array[..., ::-1])


def _mirror_boxes(boxes: NDArray[Any]) -> NDArray[Any]:
    """Mirror boxes [..., 4], cxcywh in 0..1 of the network input."""
    mirrored = boxes.copy()
    mirrored[..., 0] = 1 - mirrored[..., 0]
    return mirrored


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = logits - logits.max(-1, keepdims=True)
    probabilities: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return probabilities
