"""Opens images, whatever holds them: the only place that does, so that all forms of one image have the same pixels."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from epmvg.core.pixels import is_heic, kind_of, orientation_of, upright_rgb, upright_size
from epmvg.core.types import InputError

MAX_PIXELS = 89_478_485
"""An image with more is refused before it is decoded; from here on Pillow warns, and it would take gigabytes."""

ImageSource = Path | str | bytes | bytearray | memoryview | IO[bytes] | Image.Image | NDArray[Any]
"""What an image can be given as; tensors of torch as well."""

ACCEPTED = (
    "a path, the bytes of a file, a binary file, a PIL image, or a uint8 array [H, W, 3] in RGB "
    "(also [H, W] and [H, W, 4])"
)

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/|data:", re.IGNORECASE)
_UNREADABLE = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
"""Formats that Pillow names but cannot decode on its own."""

_ANIMATED = frozenset({"AVIF", "GIF", "PNG", "TIFF", "WEBP"})
"""Formats in which several frames are an animation, or pages; a second picture in a phone's JPEG is neither."""


class ImageError(InputError):
    """An image cannot be opened; `fault` says of what kind the reason is, `detail` is the reason in a few words."""

    def __init__(self, name: str, fault: Literal["missing", "empty", "torn", "foreign", "bomb"], detail: str) -> None:
        super().__init__(f"{name} {detail}.")
        self.fault, self.detail = fault, detail


class ImageFile:
    """An image whose upright size is known before it is decoded; close it, or use `with`.

    Of an animation it is the first frame, of a PIL image the one it stands at.

    Args:
        source: a file, its bytes, a PIL image, a uint8 array or a tensor.
        formats: the formats that may be read, in Pillow's names; None allows all that are installed.
        max_pixels: an image with more is refused before it is decoded.

    Attributes:
        size: (width, height) upright.
        turned: whether width and height change places when its stored pixels are turned upright.

    Raises:
        InputError: missing, empty, truncated, too large or not an image.
        TypeError: `source` is nothing that holds an image.
    """

    def __init__(
        self, source: ImageSource, *, formats: tuple[str, ...] | None = None, max_pixels: int = MAX_PIXELS
    ) -> None:
        holder = _holder_of(source)
        self._own = not isinstance(holder, Image.Image)
        self.name = str(holder) if isinstance(holder, Path) else getattr(holder, "filename", "") or "The image"
        self._max_pixels = max_pixels
        with _naming(self.name, max_pixels):
            self._image = holder if isinstance(holder, Image.Image) else _open(holder, self.name, formats)
            try:
                self.size = self._checked_size()
                self.turned = orientation_of(self._image) >= 5
            except BaseException:
                self.close()
                raise

    def _checked_size(self) -> tuple[int, int]:
        width, height = self._image.size
        if width * height > self._max_pixels:
            detail = f"has {width} x {height} pixels, more than {self._max_pixels:,}: scale it down"
            raise ImageError(self.name, "bomb", detail)
        if width * height == 0:
            raise ImageError(self.name, "empty", f"has {width} x {height} pixels: give one that shows something")
        return upright_size(self._image)

    def __enter__(self) -> ImageFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a PIL image that was given stays open."""
        if self._own:
            self._image.close()

    @property
    def animated(self) -> bool:
        """Whether the file holds several frames, of which the first is used; to be asked before decoding."""
        return self._image.format in _ANIMATED and bool(getattr(self._image, "is_animated", False))

    def decode(self, at_least: tuple[int, int] | None = None) -> Image.Image:
        """Return the image as RGB, upright, in memory of its own.

        Args:
            at_least: a width and height that suffice; a JPEG may then come out reduced by 2, 4 or 8 to no less.

        Raises:
            InputError: it cannot be decoded.
        """
        with _naming(self.name, self._max_pixels):
            if at_least is not None and self._own and self._image.format == "JPEG":
                self._image.draft(None, at_least[::-1] if self.turned else at_least)
            return upright_rgb(self._image, self.name)


@dataclass(frozen=True, slots=True)
class HeldImage:
    """An image to be opened again later: a path or bytes as they were given, or else its upright RGB pixels."""

    source: Path | str | bytes | Image.Image
    digest: bytes | None  # of the content of the file or bytes

    @classmethod
    def of(cls, image: ImageSource) -> HeldImage:
        """Hold an image; one that its owner may change is copied.

        Raises:
            InputError, TypeError: as `open_image`.
        """
        source = image if isinstance(image, Path | str | bytes) else open_image(image)
        return cls(source, image_digest(source))

    def open(self) -> Image.Image:
        """Open it.

        Raises:
            InputError: it cannot be opened, or the file is another than before.
        """
        if isinstance(self.source, Path | str) and image_digest(self.source) not in (self.digest, None):
            raise InputError(f"{self.source} has changed since phrases were looked for in it: predict again.")
        return open_image(self.source)


def image_digest(image: ImageSource) -> bytes | None:
    """Return a digest of a file's bytes, which need not be decoded for it; None for pixels and what cannot be read."""
    if isinstance(image, Path | str):
        try:
            return hashlib.sha256(Path(image).expanduser().read_bytes()).digest()
        except (OSError, ValueError):
            return None  # whoever opens it will say why
    return hashlib.sha256(image).digest() if isinstance(image, bytes) else None


def open_image(source: ImageSource) -> Image.Image:
    """Return an image as RGB, turned by its EXIF orientation, transparency laid on white; of an animation frame one.

    Raises:
        InputError: missing, empty, truncated, too large or not an image.
        TypeError: `source` is nothing that holds an image.
    """
    with ImageFile(source) as photo:
        return photo.decode()


@lru_cache(maxsize=1)
def image_suffixes() -> frozenset[str]:
    """Return the endings, lower case with their dot, of the image files that can be read here."""
    _register_heic()
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in known.items() if kind in Image.OPEN and kind not in _UNREADABLE)


def _holder_of(source: Any) -> Path | BytesIO | Image.Image:
    """Bring all that an image can be given as to three forms."""
    if isinstance(source, str | Path):
        return _path_of(source)
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if type(source).__module__.partition(".")[0] == "torch":
        return _from_tensor(source)
    content = _content_of(source) if hasattr(source, "read") else source
    if isinstance(content, bytes | bytearray | memoryview):
        return BytesIO(content)
    raise TypeError(f"An image must be {ACCEPTED}, not {type(source).__name__}.")


def _content_of(file: Any) -> bytes:
    if file.seekable():
        file.seek(0)  # as Pillow does
    content = file.read()
    if not isinstance(content, bytes):
        raise TypeError("The image file is opened as text: open it in binary mode, open(path, 'rb').")
    return content


def _path_of(given: str | Path) -> Path:
    path = Path(given).expanduser()
    if not str(given).strip():
        raise InputError("The image is an empty text: give the path of a file.")
    if isinstance(given, str) and _ADDRESS.match(given) and not path.exists():
        raise InputError(
            f"{given[:80]} is an address, and epmvg fetches no images: give the bytes, for example "
            "urllib.request.urlopen(address).read()."
        )
    return path


def _from_array(array: NDArray[Any]) -> Image.Image:
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if array.dtype != np.uint8 or not shaped or array.size == 0:
        raise InputError(
            "An array must be uint8 [H, W, 3] in RGB, [H, W] grey or [H, W, 4] RGBA, with pixels; this one is "
            f"{array.dtype} {list(array.shape)}."
        )
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2:] == (1,) else array))


def _from_tensor(tensor: Any) -> Image.Image:
    if str(getattr(tensor, "dtype", "")) != "torch.uint8" or tensor.ndim != 3 or len(tensor) not in (1, 3, 4):
        said = f"{tensor.dtype} {list(tensor.shape)}" if hasattr(tensor, "dtype") else type(tensor).__name__
        raise InputError(f"A tensor must be uint8 [3, H, W], as torchvision reads images; this one is {said}.")
    return _from_array(np.moveaxis(tensor.detach().cpu().numpy(), 0, -1))


def _open(source: Path | BytesIO, name: str, formats: tuple[str, ...] | None) -> Image.Image:
    try:
        return Image.open(source, formats=formats)
    except UnidentifiedImageError as error:
        head = _head(source)
        if not head:
            raise ImageError(name, "empty", "is empty: fetch it again") from error
        if formats is not None:
            raise ImageError(name, "foreign", f"is {kind_of(head)[0]}: give {', '.join(formats)}") from error
        if not is_heic(head):
            raise ImageError(name, "foreign", "is {}: {}".format(*kind_of(head))) from error
        if not _register_heic():
            detail = "is a HEIC image: pip install 'epmvg[heic]', or convert it to JPEG"
            raise ImageError(name, "foreign", detail) from error
        return Image.open(source)


def _head(source: Path | BytesIO) -> bytes:
    if isinstance(source, BytesIO):
        return source.getvalue()[:1024]
    with source.open("rb") as file:
        return file.read(1024)


def _register_heic() -> bool:
    """Let Pillow read HEIC if pillow-heif is installed; return whether it is."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


@contextmanager
def _naming(name: str, max_pixels: int) -> Iterator[None]:
    """Name the file in whatever Pillow raises; on broken bytes its decoders raise nearly anything."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise ImageError(name, "missing", "does not exist: check the path") from error
    except IsADirectoryError as error:
        raise ImageError(name, "foreign", "is a folder: give an image file in it") from error
    except PermissionError as error:
        raise ImageError(name, "torn", "may not be read: give this user the right to") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(name, "bomb", f"has more than {max_pixels:,} pixels: scale it down") from error
    except Exception as error:
        raise ImageError(name, "torn", f"cannot be decoded ({error}): fetch or save it again") from error
