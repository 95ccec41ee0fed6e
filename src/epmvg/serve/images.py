"""Decode uploaded images to the size that the model reads, and cache the latest."""

from __future__ import annotations

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO

from PIL import Image

from epmvg.core.cache import LruCache
from epmvg.core.geometry import Letterbox
from epmvg.core.images import ImageFile
from epmvg.serve.limits import Limits

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "TIFF")
"""Formats that are decoded; Pillow's other decoders are not exposed to untrusted bytes."""


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An uploaded image as the model reads it."""

    digest: bytes  # of the uploaded bytes
    pixels: Image.Image  # RGB, upright, its longer side the model's image size
    size: tuple[int, int]  # (width, height) of the upright image as uploaded


class ImageReader:
    """Decode images in two threads, and keep the latest within `limits.cache_bytes`."""

    def __init__(self, limits: Limits, image_size: int | None) -> None:
        self._max_pixels = limits.image_pixels
        self._image_size = image_size
        self._cache: LruCache[DecodedImage] = LruCache(limits.cache_bytes)
        self._threads = ThreadPoolExecutor(2, "epmvg-images")

    async def read(self, content: bytes) -> tuple[DecodedImage, bool]:
        """Return a decoded image, and whether it was cached.

        Raises:
            InputError: it is not an image, broken, too large or of another format.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.decode, content)

    def decode(self, content: bytes) -> tuple[DecodedImage, bool]:
        """As `read`, in this thread."""
        digest = hashlib.sha256(content).digest()
        cached = self._cache.get(digest)
        if cached is not None:
            return cached, True
        with ImageFile(BytesIO(content), formats=FORMATS, max_pixels=self._max_pixels) as file:
            image = DecodedImage(digest, self._pixels(file), file.size)
        self._cache.put(digest, image, 3 * image.pixels.width * image.pixels.height)
        return image, False

    def _pixels(self, file: ImageFile) -> Image.Image:
        """Return the image as the model's input holds it, or whole where the model resizes it in its own way."""
        if self._image_size is None:
            return file.decode()
        letterbox = Letterbox.fit(*file.size, self._image_size)
        left, top, right, bottom = letterbox.content
        decoded = file.decode(at_least=(4 * (right - left), 4 * (bottom - top)))  # keeps a JPEG small in memory
        return Image.fromarray(letterbox.resize(decoded))

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown()
