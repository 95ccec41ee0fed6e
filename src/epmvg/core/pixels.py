"""Pixels as a model takes them, upright and RGB, and the names of files that are something else than an image."""

from __future__ import annotations

import re

import numpy as np
from PIL import ExifTags, Image

from epmvg.core.types import InputError

_ORIENTATION = ExifTags.Base.Orientation
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_HEIC = re.compile(rb"....ftyp(?:hei[cfmsx]|hev[cmsx]|mif1|msf1)", re.DOTALL)
_SIGNATURES = (
    (rb"version https://git-lfs", "a Git LFS pointer", "run `git lfs pull`"),
    (rb"%PDF", "a PDF", "save its page as PNG"),
    (
        rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)?(?:<!DOCTYPE svg[^>]*>\s*)?<svg",
        "an SVG drawing",
        "export it as PNG",
    ),
    (rb"\s*<(?:!doctype html|html|head)", "an HTML page", "download the image itself"),
    (rb"....ftypavi[fs]", "an AVIF image, which this Pillow cannot read", "convert it to JPEG or PNG"),
    (rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI |\x00\x00\x01[\xb3\xba]", "a video", "save a frame of it as PNG"),
    (rb"\xff\x0a|\x00\x00\x00\x0cJXL ", "a JPEG XL image", "convert it to JPEG or PNG"),
    (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!", "an archive", "unpack it"),
)


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 to 8; it is 1 where none is stated or can be read."""
    try:
        stated = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # spoilt metadata makes its reader raise anything, and the pixels may be whole
        return 1
    return int(stated) if stated in _TURNS else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return (width, height) that an image has when turned by its EXIF orientation, without decoding it."""
    width, height = image.size
    turned_by_pillow = getattr(image, "tag_v2", {}).get(_ORIENTATION) in (5, 6, 7, 8)  # a TIFF not decoded yet
    return (height, width) if orientation_of(image) >= 5 and not turned_by_pillow else (width, height)


def upright_rgb(image: Image.Image, name: str = "The image") -> Image.Image:
    """Return a new RGB image without metadata, turned by the EXIF orientation, transparency laid on white.

    Args:
        image: of any mode; it is decoded, not changed otherwise.
        name: of the image, for the error.

    Raises:
        InputError: the pixels are floating-point or 32-bit numbers.
    """
    image.load()
    turn = _TURNS.get(orientation_of(image))
    rgb = _to_rgb(image, name)
    if turn is not None:
        rgb = rgb.transpose(turn)
    rgb.info.clear()  # else it would be turned once more
    return rgb


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # Pillow would clip
        grey = np.asarray(image).astype(np.int64).clip(0, 65_535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("F", "I"):
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise InputError(f"{name} holds {kind} pixels, whose white is not known: save it with 8 bits.")
    if image.has_transparency_data:
        rgba = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def is_heic(head: bytes) -> bool:
    """Return whether a file that begins with these bytes is a HEIC (HEIF) image."""
    return _HEIC.match(head) is not None


def kind_of(head: bytes) -> tuple[str, str]:
    """Return what a file that is no readable image is, by its first bytes, and what to do about it."""
    for pattern, kind, cure in _SIGNATURES:
        if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
            return kind, cure
    return "no image that can be read here", "convert it to JPEG or PNG"
