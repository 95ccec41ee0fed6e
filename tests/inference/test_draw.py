"""Boxes and labels are drawn at any size, in any script and clipped to the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageColor

from epmvg.core.types import Box, InputError
from epmvg.inference import draw
from epmvg.inference.draw import draw_boxes


@pytest.mark.parametrize("size", [(8, 8), (90, 60), (640, 480), (2400, 1600)])
def test_boxes_are_drawn_at_any_size_and_the_image_is_not_changed(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (100, 100, 100))
    width, height = size
    boxes: list[Box] = [(0.2 * width, 0.2 * height, 0.8 * width, 0.8 * height), (-9.0, -9.0, 2.0 * width, 2.0 * height)]
    drawn = draw_boxes(image, boxes, ["собака 狗 \ud800 ", "a phrase " * 90])
    assert drawn.size == size
    assert image.getcolors() == [(width * height, (100, 100, 100))]
    assert drawn.getpixel((round(0.2 * width), round(0.5 * height))) == ImageColor.getrgb(draw.COLORS[0])


@pytest.mark.parametrize("corner", [(0, 0), (290, 0), (0, 190), (290, 190)])
def test_labels_in_a_corner_are_as_whole_as_in_the_middle(corner: tuple[int, int]) -> None:
    assert label_size(*corner) == label_size(150, 100)


def label_size(x: int, y: int) -> tuple[int, int]:
    """Width and height of what a label changes in a image, beside its box."""
    image, boxes = Image.new("L", (300, 200), 128), [(x, y, x + 9, y + 9)]
    changed = ImageChops.difference(draw_boxes(image, boxes, ["a dog"]), draw_boxes(image, boxes)).getbbox()
    assert changed is not None
    return changed[2] - changed[0], changed[3] - changed[1]


def test_each_phrase_has_its_own_color() -> None:
    image = Image.new("RGB", (300, 200))
    boxes: list[Box] = [(20, 80, 100, 150), (150, 80, 250, 150)]
    apart, alike = draw_boxes(image, boxes, ["a dog", "a cat"]), draw_boxes(image, boxes, ["a dog", "a dog"])
    assert apart.getpixel((20, 140)) != apart.getpixel((150, 140))
    assert alike.getpixel((20, 140)) == alike.getpixel((150, 140))


def test_sizes_and_counts_that_do_not_match_are_rejected() -> None:
    image = Image.new("RGB", (20, 20))
    with pytest.raises(InputError, match="2 labels for 1 boxes"):
        draw_boxes(image, [(0, 0, 5, 5)], ["a", "b"])
    with pytest.raises(InputError, match="heatmap has shape"):
        draw.draw_heatmap(image, np.zeros((20, 21), np.float32))


def test_unusable_file_names_are_rejected(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 3))
    draw.save_image(image, tmp_path / "a.jpg")
    for name, words in (("a.xyz", "ends in .png"), ("none/a.png", "does not exist")):
        with pytest.raises(InputError, match=words):
            draw.save_image(image, tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == ["a.jpg"]


@pytest.mark.parametrize(("suffix", "side"), [("webp", 16_383), ("jpg", 65_500), ("png", 70_000)])
def test_images_too_large_for_a_format_are_scaled_down(suffix: str, side: int, tmp_path: Path) -> None:
    for size in ((70_000, 12), (12, 70_000)):
        image = Image.new("RGB", size)
        draw.save_image(image, tmp_path / f"a.{suffix}")
        with Image.open(tmp_path / f"a.{suffix}") as saved:
            assert max(saved.size) == side and min(saved.size) == pytest.approx(12 * side / 70_000, abs=1)
        assert image.size == size


def test_missing_letters_of_a_script_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Two words differ as drawn, unless the font has neither."""
    draw._log_missing_glyphs.cache_clear()
    box, image = (40.0, 60.0, 200.0, 200.0), Image.new("RGB", (320, 240))

    def drawn(label: str) -> bytes:
        return draw_boxes(image, [box], [label]).tobytes()

    for one, other in (
        ("pomme \u00e0 gauche", "pomme \u00e9 gauche"),
        ("\u0414\u043e\u043c", "\u0414\u0438\u043c"),
        ("\u03b1", "\u03b2"),
    ):
        assert drawn(one) != drawn(other)
    assert not caplog.text
    for _ in range(2):
        drawn("\u72d7")
    assert caplog.text.count("has no letters of some of their scripts") == 1


def test_boxes_that_are_not_finite_are_skipped() -> None:
    image, box = Image.new("RGB", (120, 80), (90, 120, 140)), (20.0, 20.0, 60.0, 60.0)
    for wrong in ((float("nan"),) * 4, (0.0, 0.0, float("inf"), 9.0)):
        drawn = draw_boxes(image, [box, wrong], ["a", "b"])
        assert drawn.tobytes() == draw_boxes(image, [box], ["a"]).tobytes()
