"""Photos as they come from anywhere: opened, turned upright, made RGB, or refused in one sentence."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from epmvg.data.archives import source_of
from epmvg.types import InputError

MOST_PIXELS = 100_000_000
"""A picture with more is refused before it is decoded: it would take gigabytes."""

_UNREADABLE = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
"""Formats that Pillow names but cannot decode on its own."""


class Photo:
    """A photo, a file or its bytes, whose upright size is known before it is decoded; close it, or use `with`.

    Of an animation it is the first picture.

    Args:
        source: the file or its bytes.
        formats: the formats that may be read, in Pillow's names; None allows all that are installed.
        most_pixels: a picture with more is refused before it is decoded.

    Raises:
        InputError: missing, empty, truncated, too large or not a picture.
    """

    def __init__(
        self, source: Path | BytesIO, *, formats: tuple[str, ...] | None = None, most_pixels: int = MOST_PIXELS
    ) -> None:
        self.name = str(source) if isinstance(source, Path) else "The image"
        self._most_pixels = most_pixels
        with _naming(self.name):
            self._image = Image.open(source_of(source) if isinstance(source, Path) else source, formats=formats)
            try:
                self._turned, self.size = self._shape()
            except BaseException:
                self.close()
                raise

    def _shape(self) -> tuple[bool, tuple[int, int]]:
        """Say whether the pixels lie on their side, and return the upright size."""
        width, height = self._image.size
        if width * height > self._most_pixels:
            raise InputError(
                f"{self.name} has {width} x {height} pixels, more than {self._most_pixels:,}: scale it down."
            )
        turned = self._image.getexif().get(0x0112) in (5, 6, 7, 8)
        return turned, (height, width) if turned else (width, height)

    def __enter__(self) -> Photo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._image.close()

    def decode(self, at_least: tuple[int, int] | None = None) -> Image.Image:
        """Return the picture as RGB, upright by its EXIF orientation.

        Args:
            at_least: a width and height that suffice; a JPEG may then come out reduced by 2, 4 or 8 to no less.

        Raises:
            InputError: it cannot be decoded.
        """
        with _naming(self.name):
            if at_least is not None and self._image.format == "JPEG":
                self._image.draft(None, at_least[::-1] if self._turned else at_least)
            ImageOps.exif_transpose(self._image, in_place=True)
            return _to_rgb(self._image, self.name)


def open_image(source: Path | BytesIO) -> Image.Image:
    """Open a photo, a file or its bytes, as RGB, upright by its EXIF orientation; of an animation its first picture.

    Raises:
        InputError: missing, empty, truncated, too large or not a picture.
    """
    with Photo(source) as photo:
        return photo.decode()


@lru_cache(maxsize=1)
def image_suffixes() -> frozenset[str]:
    """Return the endings, lower case with their dot, of the image files that can be read here."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in known.items() if kind in Image.OPEN and kind not in _UNREADABLE)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Name the file in whatever Pillow raises; on broken bytes its decoders raise nearly anything."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own bound speaks first
            yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{name} does not exist: check the path.") from error
    except PermissionError as error:
        raise InputError(f"{name} may not be read: give this user the right to.") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} has more than {MOST_PIXELS:,} pixels: scale it down.") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is not a picture this program can read: convert it to JPEG or PNG.") from error
    except Exception as error:
        raise InputError(f"{name} cannot be decoded ({error}): fetch or save it again.") from error


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise InputError(f"{name} holds floating-point pixels, whose white is not known: save it with 8 bits.")
    if image.mode.startswith("I"):  # 16-bit grey: scale, where Pillow would clip
        grey = np.asarray(image).astype(np.int64).clip(0, 65_535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        paper = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(paper, rgba).convert("RGB")
    return image.convert("RGB")
