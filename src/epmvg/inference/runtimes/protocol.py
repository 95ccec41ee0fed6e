"""What a `Predictor` asks of a backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from epmvg.core.calibration import Calibration
from epmvg.core.tokenizer import PhraseTokenizer

MapKind = Literal["where", "attention"]


class Backend(Protocol):
    """What computes the answers; arrays are numpy's, but features may be anything with `nbytes`."""

    image_size: int  # S
    max_length: int  # L
    tokenizer: PhraseTokenizer
    calibration: Calibration | None  # from the scores that `answer` gives to probabilities
    domain: str | None  # what the model was trained to recognise

    def encode(self, image: NDArray[np.float32], image_mask: NDArray[np.bool_]) -> Any: ...

    def join(self, features: Sequence[Any]) -> Any: ...

    def answer(
        self,
        features: Any,
        image_mask: NDArray[np.bool_],
        tokens: NDArray[np.int64],
        token_mask: NDArray[np.bool_],
        image_index: NDArray[np.int64],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...

    def maps(
        self,
        kind: MapKind,
        features: Any,
        image_mask: NDArray[np.bool_],
        tokens: NDArray[np.int64],
        token_mask: NDArray[np.bool_],
    ) -> list[NDArray[np.float32]]: ...
