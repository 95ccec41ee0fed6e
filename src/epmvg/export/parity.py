"""Comparison of two runtimes: images of several shapes, alone and in a batch, with few and many phrases."""

from __future__ import annotations

import numpy as np
from PIL import Image

from epmvg.core.boxes import to_xyxy
from epmvg.core.geometry import Letterbox
from epmvg.inference.runtimes.protocol import GrounderRuntime

_PHRASES = (
    "dog",
    "the woman in the tan jacket on the left",
    "a red car behind the second tree from the right",
    "it",
    "old man holding a very small umbrella over the heads of the two children who walk beside him",
    "sky",
    "the third cup",
)

_BATCHES: tuple[tuple[tuple[tuple[int, int], ...], int], ...] = (
    (((640, 480),), 1),
    (((480, 640),), 7),
    (((500, 500), (2000, 10), (33, 100)), 4),
)
"""(width and height of each image of a batch, number of phrases)."""


def largest_difference(one: GrounderRuntime, other: GrounderRuntime) -> tuple[float, float]:
    """Compare two runtimes on the same inputs; nan where a prediction is nan.

    Returns:
        The largest difference of two box edges, in pixels of the input, and of two raw confidences.
    """
    rng = np.random.default_rng(0)
    edges, confidences = [], []
    for sizes, count in _BATCHES:
        inputs = []
        for size in sizes:
            coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            letterbox = Letterbox.fit(*size, one.image_size)
            inputs.append(letterbox.pad(letterbox.resize(coarse.resize(size, Image.Resampling.BICUBIC))))
        image, image_mask = (np.stack(parts) for parts in zip(*inputs, strict=True))
        image_index = np.arange(count, dtype=np.int64) % len(sizes)
        predictions = []
        for runtime in (one, other):
            features = runtime.encode_pixels(image, image_mask)
            output, _ = runtime.query_features(features, image_mask, _PHRASES[:count], image_index)
            predictions.append((to_xyxy(output.boxes), output.scores))
        (box, confidence), (other_box, other_confidence) = predictions
        edges.append(np.abs(box - other_box).max())
        confidences.append(np.abs(confidence - other_confidence).max())
    return float(np.max(edges)) * one.image_size, float(np.max(confidences))
