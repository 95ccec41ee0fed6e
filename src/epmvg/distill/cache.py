"""A frozen teacher's answers, kept on disk: whatever it was asked once it is never asked again.

Answers are found by the content of what is asked (a phrase, an image's pixels as the student sees them, or a photo's
file), in a file that belongs to one teacher (weights, preprocessing, view). So they cannot go stale, only be unused.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from epmvg.distill.teacher import ClipTeacher
from epmvg.types import Embeddings, InputError, Progress
from epmvg.writing import naming

KEY = 16  # bytes of a hash
HEADER = 256  # bytes
TOGETHER = 64  # phrases or photos the teacher is asked at once
MAGIC = "epmvg answers 1"

ViewOf = Callable[[Path], tuple[Tensor, Tensor]]
"""Opens a photo and returns image [3, S, S] in 0..1 and pad bool [S, S]."""

See = Callable[[list[int]], tuple[Tensor, Tensor | None]]
"""Returns image [J, 3, S, S] and pad bool [J, S, S] of the images of J numbers."""


class AnswerFile:
    """Vectors by key, in one file that only grows.

    A record is a key and a vector in half precision; records are appended whole under a lock, so several processes
    may write at once, and what a crash left unfinished is cut off by the next writer.

    Args:
        path: the file; it is made if absent.
        owner: who answered; a file of somebody else is refused.
        width: E, of a vector.

    Raises:
        InputError: the file is of another owner or width, or no such file at all.
    """

    def __init__(self, path: Path, owner: str, width: int) -> None:
        self.path, self.width = path, width
        self.record = np.dtype([("key", f"V{KEY}"), ("vector", np.float16, (width,))])
        self.index: dict[bytes, int] = {}
        self.records: NDArray[np.void] = np.empty(0, self.record)
        self.lock = FileLock(f"{path}.lock")
        header = json.dumps({"made_by": MAGIC, "owner": owner, "width": width}).ljust(HEADER - 1).encode() + b"\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.lock:
            if not path.exists() or path.stat().st_size < HEADER:
                temporary = path.with_name(path.name + ".part")
                temporary.write_bytes(header)
                temporary.replace(path)
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
        return [
            None if place is None else torch.from_numpy(self.records["vector"][place].astype(np.float32))
            for place in places
        ]

    def add(self, keys: Sequence[bytes], vectors: Tensor) -> None:
        """Append vectors [K, E] under their keys."""
        fresh = np.empty(len(keys), self.record)
        fresh["key"] = np.frombuffer(b"".join(keys), f"V{KEY}")
        fresh["vector"] = vectors.detach().float().cpu().numpy()
        with naming(self.path), self.lock, self.path.open("r+b") as file:
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
        self.folder, self.owner = folder, teacher.fingerprint()
        self.answers = AnswerFile(folder / f"{self.owner}.answers", self.owner, teacher.width)
        self.contents: dict[Path, bytes] = {}
        self.asked = self.known = 0

    @cached_property
    def token_answers(self) -> AnswerFile:
        """The file of images with their patches."""
        rows, columns = self.teacher.grid
        return AnswerFile(self.folder / f"{self.owner}.tokens", self.owner, (1 + rows * columns) * self.teacher.width)

    def __call__(self, image: Tensor, phrase: list[str], pad: Tensor | None = None) -> Embeddings:
        """Answer image [I, 3, S, S] and P phrases with [I, E] and [P, E], as the teacher would."""
        return Embeddings(self.image(image, pad), self.text(phrase))

    def text(self, phrase: list[str]) -> Tensor:
        """Answer P phrases with vectors [P, E]."""
        keys = [_key(b"text", text.encode()) for text in phrase]
        return self._answer(self.answers, keys, lambda missing: self.teacher.text([phrase[i] for i in missing]))

    def image(self, image: Tensor, pad: Tensor | None = None) -> Tensor:
        """Answer images as the student sees them, by their pixels: [I, E]. Worth it where views come again."""
        return self._look(_keys_of_pixels(image, pad), _part_of(image, pad), patches=False)

    def tokens(self, image: Tensor, pad: Tensor | None = None) -> Tensor:
        """Answer images as `image` does, with their patches: [I, 1 + h * w, E]."""
        return self._look(_keys_of_pixels(image, pad), _part_of(image, pad), patches=True)

    def photos(self, paths: Sequence[Path], view_of: ViewOf, *, patches: bool = False) -> Tensor:
        """Answer photos as they are on disk, whatever the student's view shows of them: [I, E].

        With `patches`, as `tokens` does: [I, 1 + h * w, E].
        """

        def see(missing: list[int]) -> tuple[Tensor, Tensor]:
            image, pad = (torch.stack(part) for part in zip(*(view_of(paths[i]) for i in missing), strict=True))
            return image.to(self.teacher.mean.device), pad.to(self.teacher.mean.device)

        keys = [_key(b"photo", self._content(path)) for path in paths]
        return self._look(keys, see, patches=patches)

    def _look(self, keys: list[bytes], see: See, *, patches: bool) -> Tensor:
        if not patches:
            return self._answer(self.answers, keys, lambda missing: self.teacher.image(*see(missing)))
        answers = self._answer(self.token_answers, keys, lambda missing: self.teacher.tokens(*see(missing)).flatten(1))
        return answers.view(len(keys), -1, self.teacher.width)

    def _content(self, path: Path) -> bytes:
        """Hash a photo's file, once a process."""
        if path not in self.contents:
            self.contents[path] = hashlib.blake2b(path.read_bytes(), digest_size=KEY).digest()
        return self.contents[path]

    def _answer(self, answers: AnswerFile, keys: list[bytes], ask: Callable[[list[int]], Tensor]) -> Tensor:
        found = answers.find(keys)
        places: dict[bytes, int] = {}
        for i, (key, vector) in enumerate(zip(keys, found, strict=True)):
            if vector is None:
                places.setdefault(key, i)
        self.asked += len(keys)
        self.known += len(keys) - len(places)
        if places:
            with torch.no_grad():
                answers.add(list(places), ask(list(places.values())))
            found = answers.find(keys)
        return torch.stack([vector for vector in found if vector is not None]).to(self.teacher.mean.device)

    def fill(
        self,
        phrases: Sequence[str],
        photos: Sequence[Path],
        view_of: ViewOf,
        progress: Progress | None = None,
        *,
        patches: bool = False,
    ) -> dict[str, float]:
        """Ask everything beforehand, in one pass that can be cut off and started again.

        Args:
            phrases, photos: what will be asked.
            view_of: opens a photo.
            progress: called with (answered, all).
            patches: ask about the photos' patches too.

        Returns:
            answers and megabytes of the files, seconds of the pass.
        """
        start = time.monotonic()
        phrases, photos = list(dict.fromkeys(phrases)), list(dict.fromkeys(photos))
        total = len(phrases) + len(photos)
        for first in range(0, len(phrases), TOGETHER):
            self.text(phrases[first : first + TOGETHER])
            if progress:
                progress(min(first + TOGETHER, len(phrases)), total)
        for first in range(0, len(photos), TOGETHER):
            self.photos(photos[first : first + TOGETHER], view_of, patches=patches)
            if progress:
                progress(len(phrases) + min(first + TOGETHER, len(photos)), total)
        files = [self.answers, self.token_answers] if patches else [self.answers]
        return {
            "answers": sum(len(file) for file in files),
            "megabytes": round(sum(file.path.stat().st_size for file in files) / 1e6, 2),
            "seconds": round(time.monotonic() - start, 1),
        }


def _keys_of_pixels(image: Tensor, pad: Tensor | None) -> list[bytes]:
    pixels = image.detach().cpu().numpy()
    holes = None if pad is None else np.packbits(pad.cpu().numpy(), axis=-1)
    return [
        _key(b"pixels", one.tobytes() + (b"" if holes is None else holes[i].tobytes())) for i, one in enumerate(pixels)
    ]


def _part_of(image: Tensor, pad: Tensor | None) -> See:
    return lambda numbers: (image[numbers], None if pad is None else pad[numbers])


def _key(kind: bytes, content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=KEY, person=kind).digest()
