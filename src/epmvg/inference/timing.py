"""Latency and memory of a model on this machine."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count, repeat
from pathlib import Path

import numpy as np
from PIL import Image

from epmvg.inference.predictor import Predictor

_FURTHER = 8  # phrases in the same call as the first


@dataclass(frozen=True, slots=True)
class Latency:
    """Medians in milliseconds, with phrases that are not cached."""

    new_image: float  # one phrase in an image that is not cached
    further_phrase: float  # each further phrase in the same call
    cached_image: float  # one phrase in a cached image


def measure(run: Path | str, *, device: str = "auto", rounds: int = 15) -> dict[str, float]:
    """Measure the time to load a run in seconds, its `Latency` in ms and the peak memory of this process in MiB.

    Raises:
        InputError: the run cannot be loaded, or the device is not available.
    """
    start = time.perf_counter()
    predictor = Predictor(run, device=device)
    loaded = {"load_s": time.perf_counter() - start}
    latency = {f"{name}_ms": value for name, value in asdict(measure_latency(predictor, rounds)).items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return loaded | latency | {"peak_memory_mib": peak}


def measure_latency(predictor: Predictor, rounds: int = 15) -> Latency:
    """Measure the latency on images of 640 x 480 pixels, `rounds` calls of each kind after one that warms up."""
    images = (Image.fromarray(_noise(seed)) for seed in count())
    phrases = (f"the {word} thing number {number}" for number in count() for word in ("red", "small", "left", "old"))

    def median(images: Iterator[Image.Image], per_image: int) -> float:
        times = []
        for _ in range(rounds + 1):
            image, queried = next(images), [next(phrases) for _ in range(per_image)]
            start = time.perf_counter()
            predictor(image, queried)
            times.append(1000 * (time.perf_counter() - start))
        return statistics.median(times[1:])

    one, several = median(images, 1), median(images, 1 + _FURTHER)
    return Latency(one, (several - one) / _FURTHER, median(repeat(next(images)), 1))


def _noise(seed: int) -> np.typing.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (480, 640, 3), dtype=np.uint8)
