"""Read CLIP weights from safetensors, torch.save and OpenAI's TorchScript archives.

No code of a file is run: pickles are read by `torch.load(weights_only=True)`, a TorchScript archive by an unpickler
with an allow-list, as `torch.jit.load` would run its methods.
"""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from epmvg.core.types import InputError

OPENAI_CONSTANTS = frozenset({"input_resolution", "context_length", "vocab_size"})
"""Names beside the weights in OpenAI's files, and in no other form of CLIP."""

_STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "LongStorage": torch.int64,
}
_MAX_PICKLE_BYTES = 1 << 24  # OpenAI's largest has a fiftieth of that
_WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile


@dataclass(frozen=True, slots=True)
class Weights:
    """Tensors by name, in float32 where they are floating point."""

    state: dict[str, Tensor]
    openai: bool  # of OpenAI's own release, which is always QuickGELU


def read_weights(file: Path) -> Weights:
    """Read the weights of a CLIP from a file.

    Raises:
        InputError: The file is missing, torn, or of an unknown form.
    """
    try:
        state, openai = _read(file)
    except InputError:
        raise
    except Exception as error:  # on broken bytes the readers raise nearly anything
        raise InputError(
            f"{file} cannot be read as weights ({type(error).__name__}). Download or save it again."
        ) from error
    if not state:
        raise InputError(f"{file} contains no tensors by name. Give the file of a model's state_dict().")
    if any(name.startswith("vision_model.") for name in state):
        raise InputError(
            f"{file} contains a Hugging Face model's weights. Give the folder with its config.json as the teacher."
        )
    openai = openai or state.keys() >= OPENAI_CONSTANTS
    kept = {name: tensor for name, tensor in state.items() if name not in OPENAI_CONSTANTS}
    return Weights({name: t.float() if t.is_floating_point() else t for name, t in kept.items()}, openai)


def _read(file: Path) -> tuple[dict[str, Tensor], bool]:
    """Return tensors by name, and whether they come from a TorchScript archive."""
    if not file.is_file():
        raise InputError(f"{file} does not exist. Check the path.")
    with file.open("rb") as opened:
        first = opened.read(64)
    if first.startswith(b"version https://git-lfs"):
        raise InputError(f"{file} is a Git LFS pointer and not the weights. Fetch them with `git lfs pull`.")
    if file.suffix == ".safetensors":
        return _unwrapped(safetensors.torch.load_file(file)), False
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if any(name.endswith("/constants.pkl") for name in names):
                return _unwrapped(dict(_Archive(archive, file).tensors())), True
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{file} is not a weights file, or contains Python objects beside its tensors. Give a file with a"
            " model's state_dict() alone."
        ) from error
    return _unwrapped(saved), False


def _unwrapped(saved: Any) -> dict[str, Tensor]:
    """Return the weights of a training checkpoint, without the prefixes of wrappers."""
    if isinstance(saved, dict) and isinstance(saved.get("state_dict"), dict):
        saved = saved["state_dict"]
    if not isinstance(saved, dict):
        return {}
    state = {str(name): tensor for name, tensor in saved.items() if isinstance(tensor, Tensor)}
    while prefix := next((p for p in _WRAPPERS if state and all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


class _Module:
    """A module of a TorchScript archive: its attributes, and nothing of its code."""


class _Archive(pickle.Unpickler):
    """Reads the parameters of a TorchScript archive."""

    def __init__(self, archive: zipfile.ZipFile, file: Path) -> None:
        self.archive, self.file = archive, file
        (name,) = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        self.root = name.partition("/")[0]
        if archive.getinfo(name).file_size > _MAX_PICKLE_BYTES:
            raise InputError(
                f"{file} is not a CLIP of OpenAI, as its description of the model is too long. Use another file."
            )
        data = archive.read(name)
        for operation, argument, _ in pickletools.genops(data):
            if operation.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > len(data):
                raise ValueError("memo index")  # would be allocated
        super().__init__(BytesIO(data))

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuilt
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return list
        raise InputError(f"{self.file} refers to {module}.{name}, which no CLIP of OpenAI does. Use another file.")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, _ = pid
        data = self.archive.read(f"{self.root}/data/{key}")
        return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield parameters and buffers by name; masks are no weights."""
        yield from _tensors_of(self.load(), "")


def _rebuilt(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _tensors_of(module: _Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(module).items():
        if isinstance(value, _Module):
            yield from _tensors_of(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor) and name != "attn_mask":
            yield prefix + name, value.clone()
