"""The sprites of synthetic scenes: their names, color words and tinted variants.

The images lie in `sprites/` (Microsoft's Fluent Emoji, MIT); `scripts/cut_sprites.py` makes them and their table.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

SPRITE_FOLDER = Path(__file__).parent / "sprites"

TINT_HUES = {"red": 352, "orange": 24, "yellow": 50, "green": 125, "blue": 212, "purple": 270, "pink": 315}
"""Hue in degrees of a sprite that is tinted to a color."""

_TINT_RANGE = 45  # degrees around a sprite's own hue that are tinted

_CLOSE_COLORS = """
red/orange red/pink red/brown orange/yellow orange/brown orange/pink yellow/brown yellow/green blue/purple pink/purple
white/grey white/pink grey/blue grey/purple grey/brown
"""
CLOSE_COLORS = frozenset(frozenset(pair.split("/")) for pair in _CLOSE_COLORS.split())
"""Pairs of colors that people may confuse: no phrase depends on telling them apart."""


@dataclass(frozen=True, slots=True)
class Sprite:
    """One kind of object."""

    name: str
    file: str
    color: str | None  # None where people might disagree
    hue: int | None  # in degrees, of what is tinted
    tints: tuple[str, ...]  # colors that it can be tinted to
    alike: str | None  # a name that confusable kinds share; no two of them are in one scene


@lru_cache(maxsize=1)
def load_sprites() -> dict[str, Sprite]:
    """Read the table of sprites, by name."""
    rows = json.loads((SPRITE_FOLDER / "sprites.json").read_text(encoding="utf-8"))
    return {row["name"]: Sprite(**{**row, "tints": tuple(row["tints"])}) for row in rows}


@lru_cache(maxsize=4096)
def sprite_image(name: str, color: str | None = None) -> Image.Image:
    """Return a sprite as RGBA, in its own color or tinted to one of its `tints`."""
    sprite = load_sprites()[name]
    if color is not None and color in sprite.tints and sprite.hue is not None:
        return tint(sprite_image(name), sprite.hue, color)
    with Image.open(SPRITE_FOLDER / sprite.file) as image:
        return image.convert("RGBA")


def tint(image: Image.Image, hue: int, color: str) -> Image.Image:
    """Shift the pixels of an RGBA image around `hue` degrees to a color of `TINT_HUES`; light and shade stay."""
    channels = np.array(image.convert("RGB").convert("HSV"))
    degrees = channels[..., 0].astype(np.float32) * (360 / 255)
    offset = (degrees - hue + 180) % 360 - 180
    shifted = (TINT_HUES[color] + offset / 2) % 360  # half the spread: shades of one color stay one color
    degrees = np.where(np.abs(offset) <= _TINT_RANGE, shifted, degrees)
    channels[..., 0] = np.round(degrees * (255 / 360)).astype(np.uint8)
    tinted = Image.fromarray(channels, "HSV").convert("RGB")
    tinted.putalpha(image.getchannel("A"))
    return tinted
