"""Weights in safetensors files with a SHA-256 of names and values, so that a damaged file is noticed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from epmvg.core.types import InputError

WEIGHTS = "model.safetensors"
"""Name of the weights in a model's folder."""

_DIGEST = "sha256_of_tensors"
"""Key of the file's metadata; in the same file as the weights, since two files cannot be replaced at once."""


def write_weights(file: Path, state: Mapping[str, Tensor]) -> None:
    """Write weights and their digest."""
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    safetensors.torch.save_file(state, file, {_DIGEST: fingerprint(state)})


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read weights; a file without a digest is read unchecked.

    Raises:
        InputError: the weights are not those that were written.
        SafetensorError: the file is no safetensors file, or incomplete.
    """
    state = safetensors.torch.load_file(file)
    if _written_digest(file) not in (None, fingerprint(state)):
        raise InputError(f"{file} is damaged, its weights are not those that were saved. Copy or train it again.")
    return state


def weights_digest(file: Path) -> str:
    """Return the digest of a file's weights, computed where it was not written."""
    written = _written_digest(file)
    return fingerprint(safetensors.torch.load_file(file)) if written is None else written


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names and values, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _written_digest(file: Path) -> str | None:
    with safetensors.safe_open(file, "pt") as opened:
        digest: str | None = (opened.metadata() or {}).get(_DIGEST)
    return digest
