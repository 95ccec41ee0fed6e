"""What a stress is: a named change of a phrase or of a picture, and what it should do to the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar
from zlib import crc32

import numpy as np
from PIL import Image

Expects = Literal["same", "identical", "other"]
"""The box should stay, stay to the last digit, or move to something else."""

Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True)  # no slots: Python 3.11 cannot make a frozen, generic class that has them
class Stress(Generic[Given, Made]):
    """One way of making a question harder.

    `change` is pure: what it makes depends on its arguments alone. It returns None, or what it was given, where there
    is nothing to change; `needs` then completes the sentence "none has ...".
    """

    name: str
    about: str
    change: Callable[[Given, np.random.Generator], Made | None]
    needs: str
    expects: Expects = "same"


PhraseStress = Stress[str, str]
PictureStress = Stress[Image.Image, Image.Image | bytes]


def generator(seed: int, stress: str, subject: str) -> np.random.Generator:
    """Return the random numbers of one stress of one phrase or photo, whatever else is asked beside it."""
    return np.random.default_rng([seed, crc32(stress.encode()), crc32(subject.encode("utf-8", "replace"))])
