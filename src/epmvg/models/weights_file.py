"""Weights in a file that notices a flipped bit: safetensors has no checksum, so one of the values goes into its header.

The file stays plain safetensors that any reader opens.
"""

from __future__ import annotations

import hashlib
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import cast

import safetensors
import safetensors.torch
import torch

from epmvg.core.types import InputError

WEIGHTS = "model.safetensors"
"""Name of the weights in a model's folder."""

_KEY = "sha256"
_NONE_YET = "0" * 64


def write_weights(file: Path, state: dict[str, torch.Tensor]) -> None:
    """Write weights with the checksum of their values.

    The header is written with room for the sum, which is filled in once the values stand behind it: they need not be
    held in memory a second time.
    """
    safetensors.torch.save_file(state, file, {_KEY: _NONE_YET})
    with file.open("r+b") as out:
        digest, start = _digest(out)
        out.seek(0)
        place = out.read(start).index(f'"{_KEY}":"{_NONE_YET}"'.encode()) + len(f'"{_KEY}":"')
        out.seek(place)
        out.write(digest.encode())


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """Read weights, whose values must be those that were written; a file without a checksum is taken as it is.

    Raises:
        InputError: a value has changed since.
        SafetensorError: this is no such file, or not all of it.
    """
    written = _written_digest(file)
    with file.open("rb") as content:
        if written is not None and written != _digest(content)[0]:
            raise InputError(f"{file} is damaged, its weights are not those that were saved: copy or train it again.")
    return safetensors.torch.load_file(file)


def weights_digest(file: Path) -> str:
    """Return the SHA-256 of a file's values, as it was written or, in a file without a checksum, as they are."""
    written = _written_digest(file)
    if written is not None:
        return written
    with file.open("rb") as content:
        return _digest(content)[0]


def _written_digest(file: Path) -> str | None:
    with safetensors.safe_open(file, "pt") as opened:
        return cast(str | None, (opened.metadata() or {}).get(_KEY))


def _digest(content: BufferedReader | BufferedRandom) -> tuple[str, int]:
    """Return the checksum of the values, and where they start: behind a header whose length stands before it."""
    start = 8 + int.from_bytes(content.read(8), "little")
    content.seek(start)
    return hashlib.file_digest(content, "sha256").hexdigest(), start
