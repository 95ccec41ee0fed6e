"""Uploaded pictures: decoded to what the model sees, the latest kept."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from io import BytesIO
from threading import Lock

from PIL import Image

from epmvg.core.geometry import Letterbox
from epmvg.core.images import ImageFile
from epmvg.core.types import InputError
from epmvg.serve.limits import Limits, RefusalError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "TIFF")
"""What is decoded. Pillow's other readers are kept from strangers' bytes."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as the model sees it, and what it is known by."""

    digest: bytes  # of the bytes it came from
    image: Image.Image  # RGB, upright, scaled to the model's canvas
    size: tuple[int, int]  # width and height of the upright picture before that, pixels


class Pictures:
    """Decoded pictures, the latest kept within `limits.kept` bytes; several threads may ask.

    Args:
        limits: bounds on a picture and on what is kept.
        canvas: pixels of a side of the square that the model sees.
    """

    def __init__(self, limits: Limits, image_size: int) -> None:
        self._limits = limits
        self._canvas = image_size
        self._kept: OrderedDict[bytes, Picture] = OrderedDict()
        self._size = 0
        self._lock = Lock()

    def open(self, image: bytes) -> tuple[Picture, bool]:
        """Decode a picture, or find it among those kept; say which (True: found).

        Raises:
            RefusalError: 422, it is no picture, broken, too large or of a format not served.
        """
        digest = hashlib.sha256(image).digest()
        with self._lock:
            if digest in self._kept:
                self._kept.move_to_end(digest)
                return self._kept[digest], True
        picture = self._decode(digest, image)
        with self._lock:
            if digest not in self._kept and _bytes(picture) <= self._limits.kept:
                self._kept[digest] = picture
                self._size += _bytes(picture)
            while self._size > self._limits.kept:
                self._size -= _bytes(self._kept.popitem(last=False)[1])
        return picture, False

    def _decode(self, digest: bytes, image: bytes) -> Picture:
        try:
            with ImageFile(BytesIO(image), formats=FORMATS, max_pixels=self._limits.pixels) as photo:
                letterbox = Letterbox.fit(*photo.size, self._canvas)
                left, top, right, bottom = letterbox.content
                whole = photo.decode(
                    at_least=(4 * (right - left), 4 * (bottom - top))
                )  # a JPEG of any size is small then
                return Picture(digest, Image.fromarray(letterbox.resize(whole)), photo.size)
        except InputError as error:
            raise RefusalError(422, str(error)) from error


def _bytes(picture: Picture) -> int:
    return 3 * picture.image.width * picture.image.height
