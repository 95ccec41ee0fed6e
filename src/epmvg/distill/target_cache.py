"""A frozen teacher's vectors, kept on disk: what it computed once it never computes again.

Vectors are found by the content of what they are of (a phrase, an image's pixels as the student sees them, or a photo's
file), in a file that belongs to one teacher (its fingerprint: weights, architecture, preprocessing, tokenizer and
view). So they cannot go stale, only be unused.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from epmvg.core.files import atomic_write, disk_errors
from epmvg.core.images import open_image
from epmvg.core.types import InputError, Progress, TeacherEmbeddings
from epmvg.distill.teacher import ClipTeacher

KEY = 16  # bytes of a hash
HEADER = 256  # bytes
TOGETHER = 64  # phrases or photos the teacher is asked at once
MAGIC = "epmvg answers 2"

See = Callable[[list[int]], tuple[Tensor, Tensor | None]]
"""Returns image [J, 3, S, S] and pad bool [J, S, S] of the images of J numbers."""

Ask = Callable[[list[int]], Tensor]
"""Returns the vectors [J, E] of what has these J numbers."""


class AnswerFile:
    """Vectors by key, in one file that only grows.

    A record is a key and a vector in half precision times a number of its own, so that no value is too large; records
    are appended whole under a lock, so several processes may write at once, and what a crash left unfinished is cut
    off by the next writer.

    Args:
        path: the file; it is made if absent.
        owner: who answered; a file of somebody else is refused.
        width: E, of a vector.

    Raises:
        InputError: the file is of another owner or width, or no such file at all.
    """

    def __init__(self, path: Path, image_index: str, width: int) -> None:
        self.path, self.width = path, width
        self.record = np.dtype([("key", f"V{KEY}"), ("scale", np.float32), ("vector", np.float16, (width,))])
        self.index: dict[bytes, int] = {}
        self.records: NDArray[np.void] = np.empty(0, self.record)
        self.lock = FileLock(f"{path}.lock")
        header = (
            json.dumps({"made_by": MAGIC, "image_index": image_index, "width": width}).ljust(HEADER - 1).encode()
            + b"\n"
        )
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with self.lock:
            if not path.exists() or path.stat().st_size < HEADER:
                with atomic_write(path) as temporary:
                    temporary.write_bytes(header)
        with path.open("rb") as file:
            found = file.read(HEADER)
        if found != header:
            raise InputError(
                f"{path} holds the answers of another teacher or is damaged: delete it, it will be made anew."
            )
        self.refresh()

    def __len__(self) -> int:
        return len(self.index)

    def refresh(self) -> None:
        """Learn what others have added."""
        whole = (self.path.stat().st_size - HEADER) // self.record.itemsize
        if whole > len(self.records):
            known = len(self.records)
            self.records = np.memmap(self.path, self.record, "r", HEADER, (whole,))
            self.index.update((key.tobytes(), known + i) for i, key in enumerate(self.records["key"][known:]))

    def find(self, keys: Sequence[bytes]) -> list[Tensor | None]:
        """Return the vector [E] of each key, or None."""
        places = [self.index.get(key) for key in keys]
        return [None if place is None else torch.from_numpy(self._vector(place)) for place in places]

    def _vector(self, place: int) -> NDArray[np.float32]:
        vector: NDArray[np.float32] = self.records["vector"][place].astype(np.float32)
        vector *= self.records["scale"][place]
        return vector

    def add(self, keys: Sequence[bytes], vectors: Tensor) -> None:
        """Append vectors [K, E] under their keys.

        Raises:
            InputError: a vector is not finite; none is appended.
        """
        values = vectors.detach().float().cpu().numpy()
        if not np.isfinite(values).all():
            raise InputError(
                f"A vector that contains NaN or Inf is not kept in {self.path}: check the teacher's weights."
            )
        fresh = np.empty(len(keys), self.record)
        fresh["key"] = np.frombuffer(b"".join(keys), f"V{KEY}")
        fresh["scale"] = np.abs(values).max(1, initial=np.finfo(np.float32).tiny)
        fresh["vector"] = values / fresh["scale"][:, None]
        with disk_errors(self.path), self.lock, self.path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(size - (size - HEADER) % self.record.itemsize)  # over what a crash left
            file.write(fresh.tobytes())
            file.truncate()
        self.refresh()


class CachedTeacher:
    """A frozen teacher that looks up what it has answered before.

    Args:
        teacher: frozen.
        folder: where answer files lie; the teacher's own are named by its fingerprint. Patches have a file of their
            own, made when they are first asked.

    Raises:
        InputError: the teacher is not frozen, or its file is damaged.
    """

    def __init__(self, teacher: ClipTeacher, folder: Path) -> None:
        if not teacher.frozen:
            raise InputError("Only a frozen teacher's answers can be kept: set distill.frozen=true.")
        self.teacher = teacher
        self.folder, self.image_index = folder, teacher.fingerprint()
        self.answers = AnswerFile(folder / f"{self.image_index}.answers", self.image_index, teacher.width)
        self.contents: dict[Path, bytes] = {}
        self.asked = self.known = 0

    @cached_property
    def token_answers(self) -> AnswerFile:
        """The file of images with their patches."""
        rows, columns = self.teacher.grid
        return AnswerFile(
            self.folder / f"{self.image_index}.tokens", self.image_index, (1 + rows * columns) * self.teacher.width
        )

    def __call__(self, image: Tensor, phrase: list[str], image_mask: Tensor | None = None) -> TeacherEmbeddings:
        """Answer image [I, 3, S, S] and P phrases with [I, E] and [P, E], as the teacher would."""
        return TeacherEmbeddings(self.image(image, image_mask), self.text(phrase))

    def text(self, phrase: list[str]) -> Tensor:
        """Answer P phrases with vectors [P, E]."""
        keys = [_key(b"text", text.encode(errors="surrogatepass")) for text in phrase]

        def ask(missing: list[int]) -> Tensor:
            return self.teacher.text([phrase[i] for i in missing])

        return self._answer(self.answers, keys, ask, [repr(text) for text in phrase])

    def image(self, image: Tensor, image_mask: Tensor | None = None) -> Tensor:
        """Answer images as the student sees them, by their pixels: [I, E]. Worth it where views come again."""
        return self._look(_keys_of_pixels(image, image_mask), _part_of(image, image_mask), patches=False)

    def tokens(self, image: Tensor, image_mask: Tensor | None = None) -> Tensor:
        """Answer images as `image` does, with their patches: [I, 1 + h * w, E]."""
        return self._look(_keys_of_pixels(image, image_mask), _part_of(image, image_mask), patches=True)

    def photos(self, paths: Sequence[Path], flips: Sequence[bool], *, patches: bool = False) -> Tensor:
        """Embed photos as the teacher's own preprocessing shows them, mirrored where `flips` says so: [I, E].

        With `patches`, as `tokens` does: [I, 1 + h * w, E].

        Raises:
            InputError: a photo cannot be opened, or the teacher's vectors of it are not finite.
        """

        def see(missing: list[int]) -> tuple[Tensor, None]:
            images = [self.teacher.preprocess.photo(open_image(paths[i])) for i in missing]
            shown = [image.flip(-1) if flips[i] else image for i, image in zip(missing, images, strict=True)]
            return torch.stack(shown).to(self.teacher.mean.device), None

        kinds = [b"mirrored" if flip else b"photo" for flip in flips]
        keys = [_key(kind, self._content(path)) for kind, path in zip(kinds, paths, strict=True)]
        return self._look(keys, see, patches=patches, names=[str(path) for path in paths])

    def _look(self, keys: list[bytes], see: See, *, patches: bool, names: list[str] | None = None) -> Tensor:
        names = ["an image of the batch"] * len(keys) if names is None else names
        if not patches:
            return self._answer(self.answers, keys, lambda missing: self.teacher.image(*see(missing)), names)
        vectors = self._answer(
            self.token_answers, keys, lambda missing: self.teacher.tokens(*see(missing)).flatten(1), names
        )
        return vectors.view(len(keys), -1, self.teacher.width)

    def _content(self, path: Path) -> bytes:
        """Hash a photo's file, once a process."""
        if path not in self.contents:
            try:
                self.contents[path] = hashlib.blake2b(path.read_bytes(), digest_size=KEY).digest()
            except OSError as error:
                raise InputError(f"{path} cannot be read ({error.strerror}): check the path.") from error
        return self.contents[path]

    def _answer(self, answers: AnswerFile, keys: list[bytes], ask: Ask, names: list[str]) -> Tensor:
        found = answers.find(keys)
        places: dict[bytes, int] = {}
        for i, (key, vector) in enumerate(zip(keys, found, strict=True)):
            if vector is None:
                places.setdefault(key, i)
        self.asked += len(keys)
        self.known += len(keys) - len(places)
        if places:
            vectors = ask(list(places.values()))
            for place, finite in zip(places.values(), vectors.isfinite().all(1).tolist(), strict=True):
                if not finite:
                    raise InputError(
                        f"The teacher's vector of {names[place]} contains NaN or Inf and is not kept: check the"
                        " teacher's weights."
                    )
            answers.add(list(places), vectors)
            found = answers.find(keys)
        return torch.stack([vector for vector in found if vector is not None]).to(self.teacher.mean.device)

    def fill(
        self,
        phrases: Sequence[str],
        photos: Sequence[Path],
        progress: Progress | None = None,
        *,
        mirrored: bool = False,
        patches: bool = False,
    ) -> dict[str, Any]:
        """Embed everything beforehand, in one pass that can be cut off and started again.

        Args:
            phrases, photos: what will be asked.
            progress: called with (done, all).
            mirrored: embed each photo mirrored too.
            patches: embed the photos' patches too.

        Returns:
            answers and megabytes of the files, seconds of the pass, and `skipped`: photos that cannot be opened, and
            why.
        """
        start = time.monotonic()
        phrases, photos = list(dict.fromkeys(phrases)), list(dict.fromkeys(photos))
        total = len(phrases) + len(photos)
        for first in range(0, len(phrases), TOGETHER):
            self.text(phrases[first : first + TOGETHER])
            if progress:
                progress(min(first + TOGETHER, len(phrases)), total)
        skipped: list[str] = []
        for first in range(0, len(photos), TOGETHER):
            part = photos[first : first + TOGETHER]
            for flip in (False, True) if mirrored else (False,):
                try:
                    self.photos(part, [flip] * len(part), patches=patches)
                except InputError:  # of one of them
                    skipped += self._one_by_one(part, flip, patches)
            if progress:
                progress(len(phrases) + min(first + TOGETHER, len(photos)), total)
        files = [self.answers, self.token_answers] if patches else [self.answers]
        return {
            "answers": sum(len(file) for file in files),
            "megabytes": round(sum(file.path.stat().st_size for file in files) / 1e6, 2),
            "seconds": round(time.monotonic() - start, 1),
            "skipped": list(dict.fromkeys(skipped)),
        }

    def _one_by_one(self, photos: list[Path], flip: bool, patches: bool) -> list[str]:
        """Embed photos one at a time; return what is wrong with those that cannot be."""
        faults: list[str] = []
        for photo in photos:
            try:
                self.photos([photo], [flip], patches=patches)
            except InputError as error:
                faults.append(str(error))
        return faults


def _keys_of_pixels(image: Tensor, image_mask: Tensor | None) -> list[bytes]:
    pixels = image.detach().cpu().numpy()
    holes = None if image_mask is None else np.packbits(image_mask.cpu().numpy(), axis=-1)
    return [
        _key(b"pixels", one.tobytes() + (b"" if holes is None else holes[i].tobytes())) for i, one in enumerate(pixels)
    ]


def _part_of(image: Tensor, image_mask: Tensor | None) -> See:
    return lambda numbers: (image[numbers], None if image_mask is None else image_mask[numbers])


def _key(kind: bytes, content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=KEY, person=kind).digest()
