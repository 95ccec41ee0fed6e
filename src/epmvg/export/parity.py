"""Whether two backends predict the same: images of several shapes, alone and together, few and many phrases."""

from __future__ import annotations

import numpy as np
from PIL import Image

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

_ASKED: tuple[tuple[tuple[tuple[int, int], ...], int], ...] = (
    (((640, 480),), 1),
    (((480, 640),), 7),
    (((500, 500), (900, 120), (33, 100)), 4),
    (((1600, 900),), 2),
    (((2000, 10),), 1),
)
"""(width and height of each picture of a batch, phrases about them)."""


def largest_difference(one: GrounderRuntime, other: GrounderRuntime) -> tuple[float, float]:
    """Ask both the same and return how far their predictions lie apart at most; nan where one is not a number.

    Returns:
        The distance between two edges of a box, in pixels of the canvas, and between two raw scores.
    """
    random = np.random.default_rng(0)
    edges, raw = [], []
    for sizes, count in _ASKED:
        canvases = []
        for size in sizes:
            coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            letterbox = Letterbox.fit(*size, one.image_size)
            canvases.append(letterbox.pad(letterbox.resize(coarse.resize(size, Image.Resampling.BICUBIC))))
        image, image_mask = (np.stack(parts) for parts in zip(*canvases, strict=True))
        image_index = np.arange(count, dtype=np.int64) % len(sizes)
        boxes, scores = [], []
        for runtime in (one, other):
            features = runtime.encode_pixels(image, image_mask)
            box, score, _ = runtime.query_features(features, image_mask, _PHRASES[:count], image_index)
            boxes.append(np.concatenate([box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2], 1))
            scores.append(score)
        edges.append(np.abs(boxes[0] - boxes[1]).max())
        raw.append(np.abs(scores[0] - scores[1]).max())
    return float(np.max(edges)) * one.image_size, float(np.max(raw))
