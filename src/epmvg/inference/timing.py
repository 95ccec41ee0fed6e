"""Latency and memory of a model on this machine."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from epmvg.inference.predictor import Predictor

SIZE = (640, 480)


@dataclass(frozen=True, slots=True)
class Latency:
    """Medians in milliseconds; no image and no phrase is queried twice but where it says so."""

    new_image: float  # with one phrase
    further_phrase: float  # each phrase more about the same image, in one call
    known_image: float  # one phrase about an image that was queried before


def measure(run: Path | str, *, device: str = "auto", rounds: int = 15) -> dict[str, float]:
    """Load a run, query it, and return seconds, milliseconds and megabytes by name.

    Raises:
        InputError: the run cannot be loaded, or the device is not here.
    """
    start = time.perf_counter()
    predictor = Predictor(run, device=device)
    loaded = {"load_s": time.perf_counter() - start}
    latency = {f"{name}_ms": value for name, value in asdict(measure_latency(predictor, rounds)).items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return loaded | latency | {"peak_memory_mib": peak}


def measure_latency(predictor: Predictor, rounds: int = 15) -> Latency:
    """Measure the latency of a predictor on images of 640 x 480 pixels.

    Args:
        predictor: of any run or exported folder.
        rounds: calls of each kind; one more warms up.
    """
    images = (Image.fromarray(_noise(seed)) for seed in count())
    phrases = (f"the {word} thing number {number}" for number in count() for word in ("red", "small", "left", "old"))
    one = _median(predictor, images, phrases, 1, rounds)
    nine = _median(predictor, images, phrases, 9, rounds)
    known = next(images)
    again = _median(predictor, iter([known] * (rounds + 1)), phrases, 1, rounds)
    return Latency(one, (nine - one) / 8, again)


def _median(
    predictor: Predictor, images: Iterator[Image.Image], phrases: Iterator[str], per_image: int, rounds: int
) -> float:
    times = []
    for _ in range(rounds + 1):
        image, queried = next(images), [next(phrases) for _ in range(per_image)]
        start = time.perf_counter()
        predictor(image, queried)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def _noise(seed: int) -> np.typing.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
