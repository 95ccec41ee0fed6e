"""Calibration of confidence: the fitted mapping from scores to probabilities, read from its file and applied."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from epmvg.core.types import InputError

Array = NDArray[np.float64]
Method = Literal["none", "beta"]

CONFIDENCE_FILE = "confidence.json"
_EDGE = 1e-4  # scores are clipped to this distance from 0 and 1, where their logarithm ends


@dataclass(frozen=True, slots=True)
class Calibration:
    """Beta calibration (Kull et al., 2017): probability = sigmoid(a ln s - b ln(1 - s) + c) of a score s in 0..1.

    `CONFIDENCE_FILE` holds the fields as JSON.
    """

    method: Method
    a: float
    b: float
    c: float
    threshold: float | None = None  # on the probability
    false_positive_rate: float | None = None  # fraction of negative phrases that may reach the threshold
    fitted: dict[str, Any] | None = None  # the data it was fitted to, and metrics there
    weights: str | None = None  # SHA-256 of the weights whose scores it maps

    @property
    def mapping(self) -> list[float]:
        """The three parameters of the mapping."""
        return [self.a, self.b, self.c]

    @property
    def changes_scores(self) -> bool:
        """Whether scores become probabilities; with method "none" they stay raw, and only the threshold is new."""
        return self.method != "none"

    def __call__(self, score: Array) -> Array:
        """Return the probabilities [n] of raw scores [n]."""
        logit = log_features(score) @ np.array([self.a, self.b]) + self.c
        probability: Array = 0.5 * (1 + np.tanh(0.5 * logit))
        return probability

    def dump(self) -> str:
        """Return it as JSON that `read_calibration` reads back."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def log_features(score: Array) -> Array:
    """Return ln s and -ln(1 - s) of scores [n] as [n, 2]."""
    inner = np.clip(np.asarray(score, np.float64), _EDGE, 1 - _EDGE)
    return np.stack([np.log(inner), -np.log1p(-inner)], -1)


def read_calibration(folder: Path, weights: Callable[[], str] | None = None) -> Calibration | None:
    """Read a folder's calibration, None if there is none.

    Args:
        folder: holds `CONFIDENCE_FILE`, or not.
        weights: returns the SHA-256 of the weights whose scores it has to map; None for no check.

    Raises:
        InputError: the file is torn, of another kind, or belongs to other weights.
    """
    file = folder / CONFIDENCE_FILE
    if not file.exists():
        return None
    try:
        calibration = Calibration(**json.loads(file.read_text(encoding="utf-8")))
        calibration(np.array([0.5]))
    except (ValueError, TypeError) as error:
        raise InputError(f"{file} cannot be read. Delete it, or run `epmvg calibrate {folder}` again.") from error
    if weights is not None and calibration.weights not in (None, weights()):
        raise InputError(f"{file} belongs to other weights. Run `epmvg calibrate` again, or delete the file.")
    return calibration
