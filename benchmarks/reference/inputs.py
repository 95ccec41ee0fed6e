"""What a runtime is given: noise on a 4:3 letterbox and `PHRASES`. Nothing here imports torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from epmvg.inference.runtimes.protocol import GrounderRuntime
from reference import PHRASES


def noise(side: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return image [1, 3, S, S] and pad [1, S, S] of a picture of 4:3."""
    image_mask = np.ones((1, side, side), np.bool_)
    image_mask[:, side // 8 : -(side // 8)] = False
    image = np.random.default_rng(seed).random((1, 3, side, side), np.float32)
    image[:, :, image_mask[0]] = 0.45
    return image, image_mask


def predict_boxes(runtime: GrounderRuntime, images: int, phrases: int) -> NDArray[np.float64]:
    """Encode I copies of the noise and query each with P phrases -> boxes [I * P, 4] cxcywh in 0..1 of the canvas."""
    image, image_mask = noise(runtime.image_size)
    image, image_mask = image.repeat(images, 0), image_mask.repeat(images, 0)
    queries = [PHRASES[(i + j) % len(PHRASES)] for i in range(images) for j in range(phrases)]
    image_index = np.arange(images).repeat(phrases)
    features = runtime.encode_pixels(image, image_mask)
    return runtime.query_features(features, image_mask, queries, image_index)[0].boxes


def computed_in(precision: str) -> str:
    """Return the precision of what a folder's graphs leave in float."""
    return "bf16" if precision == "bf16" else "fp32"
