"""A frozen teacher whose embeddings are cached on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from epmvg.core.cache import DiskCache, content_key
from epmvg.core.hardware import to_device
from epmvg.core.images import image_digest, open_image
from epmvg.core.types import InputError, Progress
from epmvg.distill.teacher import ClipTeacher

_BATCH = 64  # phrases or images that `precompute` encodes at once


class CachedTeacher:
    """A frozen teacher that embeds each phrase and image file once.

    Embeddings are found by the content of the phrase or file. A teacher has a cache file of its own, named by its
    fingerprint, so a cached embedding never becomes stale.

    Args:
        teacher: Frozen.
        folder: Of the cache files.

    Raises:
        InputError: The cache file is damaged.
    """

    def __init__(self, teacher: ClipTeacher, folder: Path) -> None:
        self.teacher = teacher
        self.cache = DiskCache(folder / f"{teacher.fingerprint()}.sqlite")
        self._digests: dict[Path, bytes] = {}

    def text(self, phrases: Sequence[str]) -> Tensor:
        """Embed P phrases -> [P, E].

        Raises:
            InputError: An embedding is not finite.
        """
        keys = [content_key("text", phrase) for phrase in phrases]

        def compute(indices: list[int]) -> Tensor:
            return self.teacher.text([phrases[i] for i in indices])

        return self._look_up(keys, compute, [repr(phrase) for phrase in phrases])

    def image_files(self, paths: Sequence[Path], flips: Sequence[bool], *, patches: bool = False) -> Tensor:
        """Embed image files by the teacher's own preprocessing, mirrored where `flips` says so -> [I, E].

        With `patches` as `ClipTeacher.tokens` does -> [I, 1 + h * w, E].

        Raises:
            InputError: An image cannot be opened, or its embedding is not finite.
        """
        keys = [content_key("file", patches, flip, self._digest(path)) for path, flip in zip(paths, flips, strict=True)]

        def compute(indices: list[int]) -> Tensor:
            images = [self.teacher.preprocess.image(open_image(paths[i])) for i in indices]
            mirrored = [image.flip(-1) if flips[i] else image for i, image in zip(indices, images, strict=True)]
            encode = self.teacher.tokens if patches else self.teacher.image
            return encode(torch.stack(mirrored).to(self.teacher.mean.device))

        return self._look_up(keys, compute, [str(path) for path in paths])

    def _digest(self, path: Path) -> bytes:
        if path not in self._digests:
            digest = image_digest(path)
            if digest is None:
                raise InputError(f"{path} does not exist or cannot be read. Check the path.")
            self._digests[path] = digest
        return self._digests[path]

    def _look_up(self, keys: list[bytes], compute: Callable[[list[int]], Tensor], names: list[str]) -> Tensor:
        found = dict(zip(keys, self.cache.get(keys), strict=True))
        first = {key: i for i, key in reversed(list(enumerate(keys))) if found[key] is None}
        if missing := sorted(first.values()):
            embeddings = compute(missing).float().cpu().numpy()
            for i, embedding in zip(missing, embeddings, strict=True):
                if not np.isfinite(embedding).all():
                    raise InputError(
                        f"The teacher's embedding of {names[i]} contains NaN or Inf. Check the teacher's weights."
                    )
                found[keys[i]] = embedding
            self.cache.put([keys[i] for i in missing], list(embeddings))
        arrays = [array for key in keys if (array := found[key]) is not None]
        return to_device(torch.from_numpy(np.stack(arrays)), self.teacher.mean.device)

    def precompute(
        self,
        phrases: Sequence[str],
        images: Sequence[Path],
        progress: Progress | None = None,
        *,
        mirrored: bool = False,
        patches: bool = False,
    ) -> list[str]:
        """Embed everything ahead, in a pass that can be interrupted and started again.

        Args:
            phrases, images: What will be needed.
            progress: Called with (done, total).
            mirrored: Embed each image mirrored too.
            patches: Embed the images' patches too.

        Returns:
            What is wrong with each image that cannot be opened.
        """
        skipped: list[str] = []
        phrases, images = list(dict.fromkeys(phrases)), list(dict.fromkeys(images))

        def embed(paths: Sequence[Path]) -> None:
            try:
                for flip in (False, True) if mirrored else (False,):
                    self.image_files(paths, [flip] * len(paths), patches=patches)
            except InputError as error:
                if len(paths) == 1:
                    skipped.append(str(error))
                else:
                    for path in paths:
                        embed([path])

        def report(done: int) -> None:
            if progress:
                progress(done, len(phrases) + len(images))

        for start in range(0, len(phrases), _BATCH):
            self.text(phrases[start : start + _BATCH])
            report(min(start + _BATCH, len(phrases)))
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            embed(batch)
            report(len(phrases) + start + len(batch))
        return skipped
