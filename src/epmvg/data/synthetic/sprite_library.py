"""The sprites of the drawn scenes: their names, their colour words, and tinted variants.

The pictures lie in `sprites/` (Microsoft's Fluent Emoji, MIT); `scripts/cut_sprites.py` made them with the rules below.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SPRITE_FOLDER = Path(__file__).parent / "sprites"
SPRITE_SIDE = 96  # pixels, the longer side: objects are 40 to 100 pixels long in a picture of 256

TINT_HUES = {"red": 352, "orange": 24, "yellow": 50, "green": 125, "blue": 212, "purple": 270, "pink": 315}
"""Hue in degrees that a tinted sprite of this colour is turned to."""

CLOSE_COLOURS = frozenset(
    frozenset(pair.split())
    for pair in [
        "red orange",
        "red pink",
        "red brown",
        "orange yellow",
        "orange brown",
        "orange pink",
        "yellow brown",
        "yellow green",
        "blue purple",
        "pink purple",
        "white grey",
        "white pink",
        "grey blue",
        "grey purple",
        "grey brown",
    ]
)
"""Pairs that people may call by either word: a phrase never rests on telling them apart."""

_HUES = {
    "orange": (15, 35),
    "yellow": (39, 64),
    "green": (75, 168),
    "blue": (190, 246),
    "purple": (252, 288),
    "pink": (292, 332),
}
_RED = 338, 15  # wraps around
_SHARE, _RIVAL = (
    0.5,
    0.2,
)  # of the opaque pixels: a colour names a sprite that has this much of it and less of any other
_NEAR = 45  # degrees around a sprite's own hue that a tint turns with it


@dataclass(frozen=True, slots=True)
class Sprite:
    """One kind of object: `tints` are the colours it can be turned to, `alike` marks kinds that share no scene."""

    name: str
    plural: str
    file: str
    group: str
    colour: str | None
    hue: int | None
    tints: tuple[str, ...]
    alike: str | None


@lru_cache(maxsize=1)
def load_sprites() -> dict[str, Sprite]:
    """Read the table of sprites, by name."""
    rows = json.loads((SPRITE_FOLDER / "sprites.json").read_text(encoding="utf-8"))
    return {row["name"]: Sprite(**{**row, "tints": tuple(row["tints"])}) for row in rows}


@lru_cache(maxsize=4096)
def sprite_picture(name: str, colour: str | None = None) -> Image.Image:
    """Return a sprite as RGBA, in its own colour or tinted to one of its `tints`."""
    sprite = load_sprites()[name]
    if colour is not None and colour in sprite.tints and sprite.hue is not None:
        return tint(sprite_picture(name), sprite.hue, colour)
    with Image.open(SPRITE_FOLDER / sprite.file) as picture:
        return picture.convert("RGBA")


def dominant_hue(picture: Image.Image) -> int | None:
    """Return the hue in degrees around which most of a sprite's coloured pixels lie, None if few are coloured."""
    hue, saturation, value = _hsv(picture)
    coloured = hue[(saturation >= 0.3) & (value >= 0.25)]
    if len(coloured) < 0.4 * len(hue):
        return None
    counts = np.bincount(coloured.astype(int) % 360, minlength=360)
    window = np.convolve(np.concatenate([counts[-15:], counts, counts[:15]]), np.ones(31), "valid")
    return int(window.argmax())


def name_colour(picture: Image.Image) -> str | None:
    """Return the one colour word for a sprite, None where people might disagree."""
    hue, saturation, value = _hsv(picture)
    vivid, bright = saturation >= 0.35, value >= 0.55
    warm = (hue <= 40) | (hue >= 338)
    words = {word: vivid & (value >= 0.4) & (hue >= low) & (hue <= high) for word, (low, high) in _HUES.items()}
    words["yellow"] &= value >= 0.8
    words["orange"] &= (value >= 0.8) & (saturation >= 0.6)
    words["red"] = (saturation >= 0.62) & bright & ((hue >= _RED[0]) | (hue <= _RED[1]))
    words["pink"] &= value >= 0.75
    words["pink"] |= (saturation >= 0.25) & (saturation <= 0.55) & (value >= 0.9) & ((hue >= 320) | (hue <= 8))
    words["brown"] = warm & (saturation >= 0.28) & (value <= 0.68) & (value >= 0.2)
    words["white"] = (saturation <= 0.18) & (value >= 0.8)
    words["grey"] = (saturation <= 0.25) & (value >= 0.3) & (value <= 0.8)
    shares = sorted(((float(mask.mean()), word) for word, mask in words.items()), reverse=True)
    (first, word), (second, _) = shares[:2]
    needed = 0.7 if word in ("white", "grey") else _SHARE
    return word if first >= needed and second <= _RIVAL else None


def tint(picture: Image.Image, hue: int, colour: str) -> Image.Image:
    """Turn the pixels around `hue` degrees to a colour of `TINT_HUES`, keeping light and shade."""
    channels = np.array(picture.convert("RGB").convert("HSV"))
    degrees = channels[..., 0].astype(np.float32) * (360 / 255)
    offset = (degrees - hue + 180) % 360 - 180
    turned = (TINT_HUES[colour] + offset / 2) % 360  # half the spread: shades of one colour stay one colour
    degrees = np.where(np.abs(offset) <= _NEAR, turned, degrees)
    channels[..., 0] = np.round(degrees * (255 / 360)).astype(np.uint8)
    tinted = Image.fromarray(channels, "HSV").convert("RGB")
    tinted.putalpha(picture.getchannel("A"))
    return tinted


def _hsv(picture: Image.Image) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.floating]]:
    """Hue in degrees, saturation and value in 0..1 of the opaque pixels."""
    opaque = np.asarray(picture.getchannel("A")) >= 200
    pixels = np.asarray(picture.convert("RGB").convert("HSV"))[opaque].astype(np.float32) / 255
    return pixels[:, 0] * 360, pixels[:, 1], pixels[:, 2]
