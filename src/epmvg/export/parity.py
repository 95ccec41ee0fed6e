"""Whether two backends answer the same: pictures of several shapes, alone and together, few and many phrases."""

from __future__ import annotations

import numpy as np
from PIL import Image

from epmvg.backends.protocol import Backend
from epmvg.data.views import canvas_of, evaluation_view, lay
from epmvg.predict import tokenize

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
)
"""(width and height of each picture of a batch, phrases about them)."""


def largest_difference(one: Backend, other: Backend) -> float:
    """Ask both the same and return the largest distance between two edges of a box, in pixels of the canvas."""
    random = np.random.default_rng(0)
    largest = 0.0
    for sizes, count in _ASKED:
        canvases = []
        for size in sizes:
            coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            view = evaluation_view(size, one.canvas)
            canvases.append(canvas_of(lay(coarse.resize(size, Image.Resampling.BICUBIC), view), view))
        image, pad = (np.stack(parts) for parts in zip(*canvases, strict=True))
        asked = [tokenize(one, _PHRASES[:count]), tokenize(other, _PHRASES[:count])]
        owner = np.arange(count, dtype=np.int64) % len(sizes)
        boxes = []
        for backend, (tokens, token_pad) in zip((one, other), asked, strict=True):
            box, _ = backend.answer(backend.encode(image, pad), pad, tokens, token_pad, owner)
            boxes.append(np.concatenate([box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2], 1))
        largest = max(largest, float(np.abs(boxes[0] - boxes[1]).max()) * one.canvas)
    return largest
