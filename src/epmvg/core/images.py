"""Opening images, whatever form they are given in: the only place that does, so that all forms have the same pixels."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from epmvg.core.files import expand_home
from epmvg.core.types import InputError

MAX_PIXELS = 89_478_485
"""Images with more are rejected before they are decoded; from here on Pillow warns, and they need gigabytes."""

ImageSource = Path | str | bytes | bytearray | memoryview | IO[bytes] | Image.Image | NDArray[Any]
"""What an image can be given as; tensors of torch as well."""

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/|data:", re.IGNORECASE)
_UNREADABLE = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
"""Formats that Pillow registers but cannot decode by itself."""

_ORIENTATION = ExifTags.Base.Orientation
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_HEIC = rb"....ftyp(?:hei[cfmsx]|hev[cmsx]|mif1|msf1)"
_SIGNATURES = (
    (rb"version https://git-lfs", "a Git LFS pointer: run `git lfs pull`"),
    (rb"\s*<(?:!doctype html|html|head)", "an HTML page: download the image itself"),
    (_HEIC, "a HEIC image: pip install 'epmvg[heic]', or convert it to JPEG"),
    (rb"", "no image that can be read here: convert it to JPEG or PNG"),
)
"""First bytes of files that cannot be read as images, what they are and what to do."""


class ImageError(InputError):
    """An image cannot be opened: `missing` where there is no such file; `detail` is the reason in a few words."""

    def __init__(self, name: str, detail: str, missing: bool = False) -> None:
        super().__init__(f"{name} {detail}.")
        self.detail, self.missing = detail, missing


class ImageFile:
    """An image whose upright size is known before it is decoded; a context manager.

    Of an animation it is the first frame, of a PIL image the current one.

    Args:
        source: a file, its bytes, a PIL image, a uint8 array or a tensor.
        formats: the formats that may be read, in Pillow's names; None allows all that are installed.
        max_pixels: an image with more is rejected before it is decoded.

    Attributes:
        size: (width, height) of the upright image.
        turned: whether the EXIF orientation swaps width and height.

    Raises:
        InputError, TypeError: as `open_image`.
    """

    def __init__(
        self, source: ImageSource, *, formats: tuple[str, ...] | None = None, max_pixels: int = MAX_PIXELS
    ) -> None:
        opened = _to_openable(source)
        self._is_own = not isinstance(opened, Image.Image)
        self.name = str(opened) if isinstance(opened, Path) else getattr(opened, "filename", "") or "The image"
        self._max_pixels = max_pixels
        with _naming(self.name, max_pixels):
            self._image = opened if isinstance(opened, Image.Image) else _open(opened, self.name, formats)
            width, height = self._image.size
            if not 0 < width * height <= max_pixels:
                self.close()
                raise ImageError(self.name, f"has {width} x {height} pixels: give one of 1 to {max_pixels:,}")
            self.turned = _orientation(self._image) >= 5
            # Pillow has swapped the size of a TIFF that is not decoded yet.
            is_swapped = getattr(self._image, "tag_v2", {}).get(_ORIENTATION) in (5, 6, 7, 8)
            self.size = (height, width) if self.turned and not is_swapped else (width, height)

    def __enter__(self) -> ImageFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a PIL image that was given stays open."""
        if self._is_own:
            self._image.close()

    def decode(self, at_least: tuple[int, int] | None = None) -> Image.Image:
        """Return the image as upright RGB, in memory of its own.

        Args:
            at_least: a sufficient width and height; a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size.
        """
        with _naming(self.name, self._max_pixels):
            if at_least is not None and self._is_own and self._image.format == "JPEG":
                self._image.draft(None, at_least[::-1] if self.turned else at_least)
            return upright_rgb(self._image, self.name)


def open_image(source: ImageSource) -> Image.Image:
    """Return an image as RGB, with its EXIF orientation applied and transparency blended with white.

    Raises:
        InputError: missing, empty, truncated, too large or not an image.
        TypeError: `source` is not of a type that holds an image.
    """
    with ImageFile(source) as image:
        return image.decode()


def image_digest(source: ImageSource) -> bytes:
    """Return the SHA-256 of a file's bytes, without decoding them, or of the upright RGB pixels of any other image."""
    if isinstance(source, Path | str):
        try:
            return hashlib.sha256(expand_home(source).read_bytes()).digest()
        except (OSError, ValueError):
            pass  # opening it raises, and names the reason
    elif isinstance(source, bytes):
        return hashlib.sha256(source).digest()
    image = open_image(source)
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()


@lru_cache(maxsize=1)
def image_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case with their dot, of image files that can be read here."""
    _register_heic()
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in known.items() if kind in Image.OPEN and kind not in _UNREADABLE)


def upright_rgb(image: Image.Image, name: str = "The image") -> Image.Image:
    """Return a new RGB image without metadata, EXIF orientation applied and transparency blended with white.

    Raises:
        InputError: the pixels are floating-point or 32-bit numbers; `name` is the image's in the message.
    """
    image.load()
    transpose = _TRANSPOSE.get(_orientation(image))
    rgb = _to_rgb(image, name)
    if transpose is not None:
        rgb = rgb.transpose(transpose)
    rgb.info.clear()  # else the orientation would be applied again
    return rgb


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where it is not stated or cannot be read."""
    try:
        stated = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # reading broken metadata raises anything, while the pixels may be intact
        return 1
    return int(stated) if stated in _TRANSPOSE else 1


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # Pillow would clip
        gray = np.asarray(image).astype(np.int64).clip(0, 65_535) >> 8
        return Image.fromarray(gray.astype(np.uint8)).convert("RGB")
    if image.mode in ("F", "I"):
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise InputError(f"{name} has {kind} pixels, whose white is not known. Save it with 8 bits.")
    if image.has_transparency_data:
        rgba = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _to_openable(source: Any) -> Path | BytesIO | Image.Image:
    """Convert everything that an image can be given as to one of three types."""
    if isinstance(source, str | Path):
        return image_path(source)
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if type(source).__module__.partition(".")[0] == "torch":
        return _from_tensor(source)
    if hasattr(source, "read"):
        if source.seekable():
            source.seek(0)  # as Pillow does
        source = source.read()
        if not isinstance(source, bytes):
            raise TypeError("The image file is open in text mode. Open it in binary mode, open(path, 'rb').")
    if isinstance(source, bytes | bytearray | memoryview):
        return BytesIO(source)
    raise TypeError(
        "An image must be a path, the bytes of a file, a binary file, a PIL image, or a uint8 array [H, W, 3] in RGB "
        f"(also [H, W] and [H, W, 4]), not {type(source).__name__}."
    )


def image_path(path: str | Path) -> Path:
    """Return the path of an image or of a folder of images, ~ replaced.

    Raises:
        InputError: it is an empty string or a URL.
    """
    if not str(path).strip():
        raise InputError("The image is an empty string. Give the path of a file.")
    expanded = expand_home(path)
    if isinstance(path, str) and _URL.match(path) and not expanded.exists():
        raise InputError(f"{path[:80]} is a URL, and URLs are not fetched. Download the image, and give its file.")
    return expanded


def _from_array(array: NDArray[Any]) -> Image.Image:
    has_shape = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if array.dtype != np.uint8 or not has_shape or array.size == 0:
        raise InputError(
            "An array must be uint8 [H, W, 3] in RGB, [H, W] or [H, W, 4], with pixels; this one is "
            f"{array.dtype} {list(array.shape)}."
        )
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2:] == (1,) else array))


def _from_tensor(tensor: Any) -> Image.Image:
    if str(getattr(tensor, "dtype", "")) != "torch.uint8" or tensor.ndim != 3 or len(tensor) not in (1, 3, 4):
        given = f"{tensor.dtype} {list(tensor.shape)}" if hasattr(tensor, "dtype") else type(tensor).__name__
        raise InputError(f"A tensor must be uint8 [3, H, W], as torchvision reads images; this one is {given}.")
    return _from_array(np.moveaxis(tensor.detach().cpu().numpy(), 0, -1))


def _open(source: Path | BytesIO, name: str, formats: tuple[str, ...] | None) -> Image.Image:
    try:
        return Image.open(source, formats=formats)
    except UnidentifiedImageError as error:
        head = _read_head(source)
        if not head:
            raise ImageError(name, "is empty: download it again") from error
        if formats is None and re.match(_HEIC, head, re.DOTALL) and _register_heic():
            return Image.open(source)
        kind = next(kind for pattern, kind in _SIGNATURES if re.match(pattern, head, re.DOTALL | re.IGNORECASE))
        advice = "" if formats is None else f" (formats: {', '.join(formats)})"
        raise ImageError(name, f"is {kind}{advice}") from error


def _read_head(source: Path | BytesIO) -> bytes:
    if isinstance(source, BytesIO):
        return source.getvalue()[:1024]
    with source.open("rb") as file:
        return file.read(1024)


def _register_heic() -> bool:
    """Let Pillow read HEIC if pillow-heif is installed, and return whether it is."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


@contextmanager
def _naming(name: str, max_pixels: int) -> Iterator[None]:
    """Raise `ImageError` with the name of the image for whatever Pillow raises; for broken files that is anything."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise ImageError(name, "does not exist: check the path", missing=True) from error
    except (IsADirectoryError, PermissionError) as error:
        raise ImageError(name, f"cannot be read ({error.strerror}): check the path and its permissions") from error
    except Image.DecompressionBombError as error:
        raise ImageError(name, f"has more than {max_pixels:,} pixels: scale it down") from error
    except Exception as error:
        raise ImageError(name, f"cannot be decoded ({error}): download or save it again") from error
