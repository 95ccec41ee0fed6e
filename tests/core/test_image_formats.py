"""Opening images: every format and mode becomes upright RGB, and damaged files are named."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from epmvg.core.images import open_image
from epmvg.core.types import InputError


def draw_image(width: int, height: int) -> Image.Image:
    """An image with broad colors and fine detail."""
    random = np.random.default_rng(0)
    broad = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), 3)
    grain = random.normal(0, 6, (height, width, 1))
    return Image.fromarray((np.asarray(broad) + grain).clip(0, 255).astype(np.uint8))


def bytes_of(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_an_animation_is_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "green", "blue")]
    for kind in ("gif", "png", "webp"):
        frames[0].save(tmp_path / f"moving.{kind}", save_all=True, append_images=frames[1:])
        red, green, blue = open_image(tmp_path / f"moving.{kind}").getpixel((4, 3))  # type: ignore[misc]
        assert red > 240 and green < 20 and blue < 20


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damaged_photos_open_or_are_named(tmp_path: Path, kind: str) -> None:
    """Whatever the damage, it opens or the InputError names the file."""
    whole = bytes_of(draw_image(40, 30), kind)
    random = np.random.default_rng(0)
    file = tmp_path / "photo.bin"
    for number in range(60):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 4):
            damaged[place] = random.integers(256)
        file.write_bytes(damaged[: random.integers(len(whole))] if number % 2 else damaged)
        try:
            assert open_image(file).mode == "RGB"
        except InputError as error:
            assert "photo.bin" in str(error)


@pytest.mark.parametrize("fault", ["missing", "empty", "truncated", "text", "huge"])
def test_unusable_photos_are_named(tmp_path: Path, fault: str) -> None:
    file = tmp_path / "photo.jpg"
    whole = bytes_of(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")
    content = {"empty": b"", "truncated": whole[: len(whole) // 2], "text": b"not an image"}
    if fault in content:
        file.write_bytes(content[fault])
    if fault == "huge":
        file.write_bytes(bytes_of(Image.new("1", (20_000, 20_000)), "PNG"))
    with pytest.raises(InputError, match=r"photo\.jpg"):
        open_image(file)
