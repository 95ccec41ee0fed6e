"""Pictures as cameras, networks and old phones leave them; strengths are shares of the picture, or grey levels."""

from __future__ import annotations

import io
from functools import partial

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from epmvg.stress.kind import PictureStress

TINY, HUGE = 64, 4000  # px, the longer side

_EXIF_ORIENTATION = 0x0112
# What is done to an upright picture so that the reader of each orientation tag turns it upright again.
_LAID = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def blur(picture: Image.Image, _: np.random.Generator, *, share: float) -> Image.Image:
    """Blur with a Gaussian whose deviation is a share of the longer side."""
    return picture.filter(ImageFilter.GaussianBlur(share * max(picture.size)))


def add_noise(picture: Image.Image, random: np.random.Generator, *, deviation: float) -> Image.Image:
    """Add Gaussian noise of so many grey levels to each pixel's colours."""
    pixels = np.asarray(picture, np.float32)
    noise = random.standard_normal(pixels.shape, np.float32) * deviation
    return Image.fromarray((pixels + noise).round().clip(0, 255).astype(np.uint8))


def compress(picture: Image.Image, _: np.random.Generator, *, quality: int) -> bytes:
    """Save as a JPEG of a low quality."""
    return _saved(picture, "JPEG", quality=quality)


def darken(picture: Image.Image, _: np.random.Generator, *, share: float) -> Image.Image:
    """Keep a share of the light."""
    return ImageEnhance.Brightness(picture).enhance(share)


def flatten(picture: Image.Image, _: np.random.Generator, *, share: float) -> Image.Image:
    """Keep a share of the contrast."""
    return ImageEnhance.Contrast(picture).enhance(share)


def grey(picture: Image.Image, _: np.random.Generator) -> Image.Image:
    """Take the colours out."""
    return picture.convert("L").convert("RGB")


def turn(picture: Image.Image, random: np.random.Generator) -> bytes:
    """Lay the pixels on their side or mirror them, without loss, and say so in the EXIF orientation."""
    orientation = int(random.integers(2, 9))
    exif = Image.Exif()
    exif[_EXIF_ORIENTATION] = orientation
    return _saved(picture.transpose(_LAID[orientation]), "PNG", exif=exif, compress_level=1)


def scale(picture: Image.Image, _: np.random.Generator, *, side: int, up: bool) -> Image.Image | None:
    """Scale the longer side to `side`, up or down; None where that is the other way."""
    longest = max(picture.size)
    if longest == side or (longest < side) != up:
        return None
    width, height = (max(1, round(edge * side / longest)) for edge in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _saved(picture: Image.Image, form: str, **settings: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **settings)
    return file.getvalue()


PICTURE_STRESSES = (
    PictureStress("blur", "Gaussian, 0.5 % of the longer side.", partial(blur, share=0.005), "pixels"),
    PictureStress("heavy blur", "Gaussian, 2 % of the longer side.", partial(blur, share=0.02), "pixels"),
    PictureStress("noise", "Gaussian, 20 grey levels.", partial(add_noise, deviation=20), "pixels"),
    PictureStress("heavy noise", "Gaussian, 60 grey levels.", partial(add_noise, deviation=60), "pixels"),
    PictureStress("JPEG 30", "Saved with quality 30.", partial(compress, quality=30), "pixels"),
    PictureStress("JPEG 5", "Saved with quality 5.", partial(compress, quality=5), "pixels"),
    PictureStress("dark", "40 % of the light.", partial(darken, share=0.4), "pixels"),
    PictureStress("very dark", "10 % of the light.", partial(darken, share=0.1), "pixels"),
    PictureStress("low contrast", "40 % of the contrast.", partial(flatten, share=0.4), "pixels"),
    PictureStress("very low contrast", "10 % of the contrast.", partial(flatten, share=0.1), "pixels"),
    PictureStress("greyscale", "No colours.", grey, "pixels"),
    PictureStress(
        "turned by EXIF", "Laid on its side or mirrored, and an EXIF tag says so.", turn, "pixels", "identical"
    ),
    PictureStress("tiny", f"Scaled down to {TINY} px.", partial(scale, side=TINY, up=False), f"more than {TINY} px"),
    PictureStress("huge", f"Scaled up to {HUGE:,} px.", partial(scale, side=HUGE, up=True), f"fewer than {HUGE:,} px"),
)
