"""Weights in safetensors files with a SHA-256 of names and values, so that a damaged file is noticed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from epmvg.core.locate import is_run
from epmvg.core.types import InputError

WEIGHTS = "model.safetensors"
"""Name of the weights in a model's folder."""

_DIGEST = "sha256_of_tensors"
"""Key of the file's metadata; in the same file as the weights, since two files cannot be replaced at once."""

_SCALE = ":scale"
"""Suffix of the name of the scales of an int8 matrix."""


def write_weights(file: Path, state: Mapping[str, Tensor], *, int8: bool = False) -> None:
    """Write weights and their digest.

    Args:
        file: to write.
        state: weights by name.
        int8: write matrices as int8 with a scale per row, a quarter of the size; `read_weights` returns float32.
    """
    if int8:
        state = _quantize(state)
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
    return _dequantize(state)


def weights_digest(file: Path) -> str:
    """Return the digest of a file's weights, computed where it was not written."""
    written = _written_digest(file)
    return fingerprint(safetensors.torch.load_file(file)) if written is None else written


def digest_of_weights(folder: Path) -> str:
    """Return the SHA-256 of a run's weights, or of the graphs or weights of a folder that only predicts."""
    if is_run(folder):
        return weights_digest(folder / WEIGHTS)
    digest = hashlib.sha256()
    for file in sorted(file for suffix in ("onnx", "xml", "bin", "safetensors") for file in folder.glob(f"*.{suffix}")):
        with file.open("rb") as content:
            hashlib.file_digest(content, lambda: digest)
    return digest.hexdigest()


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names and values, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _quantize(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace floating-point matrices, kernels included, by int8 and a scale per row."""
    quantized = dict(state)
    for name, tensor in state.items():
        if tensor.is_floating_point() and tensor.ndim >= 2:
            largest = tensor.flatten(1).abs().amax(1)
            scale = torch.where(largest > 0, largest / 127, 1.0)
            quantized[name] = (tensor / _per_row(scale, tensor)).round().to(torch.int8)
            quantized[name + _SCALE] = scale
    return quantized


def _dequantize(state: dict[str, Tensor]) -> dict[str, Tensor]:
    scales = {name: state.pop(name) for name in [*state] if name.endswith(_SCALE)}
    for name, scale in scales.items():
        tensor = state[name.removesuffix(_SCALE)]
        state[name.removesuffix(_SCALE)] = tensor.to(scale.dtype) * _per_row(scale, tensor)
    return state


def _per_row(scale: Tensor, tensor: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (tensor.ndim - 1))


def _written_digest(file: Path) -> str | None:
    with safetensors.safe_open(file, "pt") as opened:
        digest: str | None = (opened.metadata() or {}).get(_DIGEST)
    return digest
