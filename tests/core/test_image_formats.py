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
    """A image with broad colors and fine detail."""
    random = np.random.default_rng(0)
    broad = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), 3)
    grain = random.normal(0, 6, (height, width, 1))
    return Image.fromarray((np.asarray(broad) + grain).clip(0, 255).astype(np.uint8))


def bytes_of(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    (tmp_path / "turned.jpg").write_bytes(bytes_of(Image.new("RGB", (40, 20)), "JPEG", exif=exif.tobytes()))
    assert open_image(tmp_path / "turned.jpg").size == (20, 40)


def test_an_animation_is_its_first_picture(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "green", "blue")]
    for kind in ("gif", "png", "webp"):
        frames[0].save(tmp_path / f"moving.{kind}", save_all=True, append_images=frames[1:])
        red, green, blue = open_image(tmp_path / f"moving.{kind}").getpixel((4, 3))  # type: ignore[misc]
        assert red > 240 and green < 20 and blue < 20


def test_printing_colors_become_rgb(tmp_path: Path) -> None:
    (tmp_path / "print.jpg").write_bytes(bytes_of(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    red, green, _ = open_image(tmp_path / "print.jpg").getpixel((4, 4))  # type: ignore[misc]
    assert red > 200 and green < 50


def test_sixteen_bits_in_a_png(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 5), 40_000, np.uint16)).save(tmp_path / "deep.png")
    assert open_image(tmp_path / "deep.png").getpixel((0, 0)) == (156, 156, 156)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damaged_photos_open_or_are_named(tmp_path: Path, kind: str) -> None:
    """Whatever the damage, it is a image or an InputError with the file's name."""
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


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "I;16", "1"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.new("I;16", (9, 7), 40_000) if mode == "I;16" else Image.new(mode, (9, 7))
    image.save(tmp_path / "image.tiff")
    opened = open_image(tmp_path / "image.tiff")
    assert (opened.mode, opened.size) == ("RGB", (9, 7))
    if mode == "I;16":
        assert opened.getpixel((0, 0)) == (156, 156, 156)


@pytest.mark.parametrize("fault", ["missing", "empty", "truncated", "text", "huge"])
def test_unusable_photos_are_named(tmp_path: Path, fault: str) -> None:
    file = tmp_path / "photo.jpg"
    whole = bytes_of(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")
    content = {"empty": b"", "truncated": whole[: len(whole) // 2], "text": b"not a image"}
    if fault in content:
        file.write_bytes(content[fault])
    if fault == "huge":
        file.write_bytes(bytes_of(Image.new("1", (20_000, 20_000)), "PNG"))
    with pytest.raises(InputError, match=r"photo\.jpg"):
        open_image(file)
