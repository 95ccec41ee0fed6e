"""The faults of TransVG's training views, kept so that the mended ones can be compared with what was published.

Behaviour from its code as described in SPEC_transvg 7.4 and 11; nothing else uses this.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

PLACES = ("left", "right", "top", "bottom", "middle")


def swap_sides(phrase: str) -> str:
    """Swap "left" and "right" wherever the letters stand: "bright" becomes "bleft"."""
    return re.sub("left|right", lambda match: "right" if match.group() == "left" else "left", phrase)


def names_place(phrase: str) -> bool:
    """Say whether the letters of a place stand anywhere: "laptop" and "bright" do."""
    return any(place in phrase.lower() for place in PLACES)


def accepts(crops: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Say which crops [T, 4] TransVG takes for which boxes [P, 4], all xyxy in pixels -> bool [T, P].

    It compares the centre's x with the crop's top and its y with the crop's left, and never right or bottom.
    """
    centre_x, centre_y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    return (centre_x > crops[:, 1:2]) & (centre_y > crops[:, 0:1])
