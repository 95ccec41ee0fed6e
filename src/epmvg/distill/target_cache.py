"""A frozen teacher whose embeddings are cached on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from epmvg.core.cache import DiskCache, content_key
from epmvg.core.images import image_digest, open_image
from epmvg.core.types import InputError, Progress, TeacherEmbeddings
from epmvg.distill.teacher import ClipTeacher

_BATCH = 64  # phrases or images that `precompute` encodes at once

Load = Callable[[list[int]], tuple[Tensor, Tensor | None]]
"""Returns the images [J, 3, S, S] of J indices, and their mask [J, S, S]."""


class CachedTeacher:
    """A frozen teacher that computes each embedding once.

    Embeddings are found by content: of a phrase, of the student's input, or of an image file. A teacher has a file of
    its own, named by its fingerprint, so a cached embedding never becomes stale.

    Args:
        teacher: Frozen.
        folder: Of the cache files.

    Raises:
        InputError: The teacher is not frozen, or the file is damaged.
    """

    def __init__(self, teacher: ClipTeacher, folder: Path) -> None:
        if not teacher.frozen:
            raise InputError("Only a frozen teacher's embeddings can be cached: set distill.frozen=true.")
        self.teacher = teacher
        self.cache = DiskCache(folder / f"{teacher.fingerprint()}.sqlite")
        self._digests: dict[Path, bytes] = {}

    def __call__(self, image: Tensor, phrase: list[str], image_mask: Tensor | None = None) -> TeacherEmbeddings:
        """Embed image [I, 3, S, S] and P phrases -> [I, E] and [P, E], as the teacher would."""
        return TeacherEmbeddings(self.image(image, image_mask), self.text(phrase))

    def text(self, phrase: list[str]) -> Tensor:
        """Embed P phrases -> [P, E]."""
        keys = [content_key("text", text) for text in phrase]

        def compute(indices: list[int]) -> Tensor:
            return self.teacher.text([phrase[i] for i in indices])

        return self._look_up(keys, compute, [repr(text) for text in phrase])

    def image(self, image: Tensor, image_mask: Tensor | None = None) -> Tensor:
        """Embed the student's input [I, 3, S, S] -> [I, E]."""
        return self._embed_inputs(image, image_mask, patches=False)

    def tokens(self, image: Tensor, image_mask: Tensor | None = None) -> Tensor:
        """Embed the student's input and its patches -> [I, 1 + h * w, E]."""
        return self._embed_inputs(image, image_mask, patches=True)

    def _embed_inputs(self, image: Tensor, image_mask: Tensor | None, *, patches: bool) -> Tensor:
        masks = [None] * len(image) if image_mask is None else [np.packbits(mask.cpu().numpy()) for mask in image_mask]
        keys = [content_key("input", patches, one, mask) for one, mask in zip(image, masks, strict=True)]

        def load(indices: list[int]) -> tuple[Tensor, Tensor | None]:
            return image[indices], None if image_mask is None else image_mask[indices]

        return self._embed(keys, load, ["an image of the batch"] * len(keys), patches)

    def image_files(self, paths: Sequence[Path], flips: Sequence[bool], *, patches: bool = False) -> Tensor:
        """Embed image files by the teacher's own preprocessing, mirrored where `flips` says so -> [I, E].

        With `patches` as `tokens` does -> [I, 1 + h * w, E].

        Raises:
            InputError: An image cannot be opened, or its embedding is not finite.
        """
        keys = [content_key("file", patches, flip, self._digest(path)) for path, flip in zip(paths, flips, strict=True)]

        def load(indices: list[int]) -> tuple[Tensor, None]:
            images = [self.teacher.preprocess.image(open_image(paths[i])) for i in indices]
            mirrored = [image.flip(-1) if flips[i] else image for i, image in zip(indices, images, strict=True)]
            return torch.stack(mirrored).to(self.teacher.mean.device), None

        return self._embed(keys, load, [str(path) for path in paths], patches)

    def _digest(self, path: Path) -> bytes:
        if path not in self._digests:
            digest = image_digest(path)
            if digest is None:
                raise InputError(f"{path} does not exist or cannot be read: check the path.")
            self._digests[path] = digest
        return self._digests[path]

    def _embed(self, keys: list[bytes], load: Load, names: list[str], patches: bool) -> Tensor:
        def compute(indices: list[int]) -> Tensor:
            encode = self.teacher.tokens if patches else self.teacher.image
            return encode(*load(indices))

        return self._look_up(keys, compute, names)

    def _look_up(self, keys: list[bytes], compute: Callable[[list[int]], Tensor], names: list[str]) -> Tensor:
        found = dict(zip(keys, self.cache.get(keys), strict=True))
        first = {key: i for i, key in reversed(list(enumerate(keys))) if found[key] is None}
        if missing := sorted(first.values()):
            embeddings = compute(missing).float().cpu().numpy()
            for i, embedding in zip(missing, embeddings, strict=True):
                if not np.isfinite(embedding).all():
                    raise InputError(
                        f"The teacher's embedding of {names[i]} contains NaN or Inf and is not cached: check the "
                        "teacher's weights."
                    )
                found[keys[i]] = embedding
            self.cache.put([keys[i] for i in missing], list(embeddings))
        arrays = [array for key in keys if (array := found[key]) is not None]
        return torch.from_numpy(np.stack(arrays)).to(self.teacher.mean.device)

    def precompute(
        self,
        phrases: Sequence[str],
        images: Sequence[Path],
        progress: Progress | None = None,
        *,
        mirrored: bool = False,
        patches: bool = False,
    ) -> dict[str, Any]:
        """Embed everything ahead, in a pass that can be interrupted and started again.

        Args:
            phrases, images: What will be needed.
            progress: Called with (done, total).
            mirrored: Embed each image mirrored too.
            patches: Embed the images' patches too.

        Returns:
            `embeddings` and `megabytes` of the cache, `seconds`, `skipped` (images that cannot be opened, and why), and
            the cache's `file`.
        """
        start, skipped, flips = time.monotonic(), list[str](), (False, True) if mirrored else (False,)
        phrases, images = list(dict.fromkeys(phrases)), list(dict.fromkeys(images))

        def report(done: int) -> None:
            if progress:
                progress(done, len(phrases) + len(images))

        def embed(paths: Sequence[Path]) -> None:
            for flip in flips:
                self.image_files(paths, [flip] * len(paths), patches=patches)

        for first in range(0, len(phrases), _BATCH):
            self.text(phrases[first : first + _BATCH])
            report(min(first + _BATCH, len(phrases)))
        for first in range(0, len(images), _BATCH):
            batch = images[first : first + _BATCH]
            try:
                embed(batch)
            except InputError:  # of at least one image
                for image in batch:
                    try:
                        embed([image])
                    except InputError as error:
                        skipped.append(str(error))
            report(len(phrases) + first + len(batch))
        return {
            "embeddings": len(self.cache),
            "megabytes": round(self.cache.nbytes / 1e6, 2),
            "seconds": round(time.monotonic() - start, 1),
            "skipped": skipped,
            "file": str(self.cache.path),
        }
