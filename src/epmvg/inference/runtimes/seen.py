"""Images that a backend has encoded, remembered within so many bytes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epmvg.core.geometry import Letterbox


@dataclass(frozen=True, slots=True)
class SeenImage:
    """An encoded image, ready for further phrases."""

    letterbox: Letterbox
    image_mask: NDArray[np.bool_]  # [1, S, S]
    features: Any  # [1, ...]

    @property
    def nbytes(self) -> int:
        return int(self.image_mask.nbytes + self.features.nbytes)


class SeenImages:
    """Encoded images by key, within so many bytes; the longest unused go first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self._kept: OrderedDict[bytes, SeenImage] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes | None) -> SeenImage | None:
        """Return what is kept under a key, or None."""
        if key is None or key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key]

    def add(self, key: bytes, seen: SeenImage) -> None:
        """Keep an image that is not kept yet, unless it alone is too large."""
        if seen.nbytes > self.limit:
            return
        self._kept[key] = seen
        self.nbytes += seen.nbytes
        while self.nbytes > self.limit:
            self.nbytes -= self._kept.popitem(last=False)[1].nbytes
