"""Sprites have the colors that their table states."""

from __future__ import annotations

import runpy
from pathlib import Path

from epmvg.data.synthetic.sprite_library import load_sprites, sprite_image

RULES = runpy.run_path(str(Path(__file__).parents[3] / "scripts" / "cut_sprites.py"))


def test_a_color_word_is_true_of_every_sprite_and_every_tint() -> None:
    for name, sprite in load_sprites().items():
        image = sprite_image(name)
        assert RULES["name_color"](image) == sprite.color, name
        if sprite.hue is not None:
            assert RULES["dominant_hue"](image) == sprite.hue, name
        for color in sprite.tints:
            assert RULES["name_color"](sprite_image(name, color)) == color, (name, color)
