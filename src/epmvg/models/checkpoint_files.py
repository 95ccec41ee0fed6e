"""Published checkpoints: their tensors by name, and what their training stated beside them.

Files are opened by torch's weights-only unpickler: nothing but tensors and plain containers is ever built from them.
"""

from __future__ import annotations

import argparse
import collections
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from epmvg.core.types import InputError


@dataclass(frozen=True, slots=True)
class Published:
    """A published checkpoint."""

    tensors: dict[str, Tensor]
    stated: dict[str, Any]  # the settings of its training by name, empty where the file has none


def read_published(file: Path | str) -> Published:
    """Read a checkpoint, unwrapped from whatever training left around its tensors and before their names.

    Raises:
        InputError: no such file, not a checkpoint, or one that would have to run code to be opened.
    """
    file = Path(file)
    if not file.is_file():
        raise InputError(f"{file} does not exist: give a .pth or .safetensors file.")
    if file.suffix == ".safetensors":
        try:
            return Published(_unprefixed(safetensors.torch.load_file(file)), {})
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise InputError(f"{file} is not a safetensors file ({error}): fetch it again.") from error
    try:
        with torch.serialization.safe_globals(_PLAIN):
            held = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not its own
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found:
            raise InputError(
                f"{file} wants to build a {found[1]}, which is not plain data, and was not opened: "
                "save its state dict alone where you trust it."
            ) from error
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(f"{file} is not a checkpoint that can be read ({reason}): fetch it again.") from error
    stated: dict[str, Any] = {}
    while isinstance(held, dict):
        stated = _settings_in(held) or stated
        inner = next((held[key] for key in _CONTAINERS if isinstance(held.get(key), dict)), None)
        if inner is None:
            break
        held = inner
    tensors = {str(k): v for k, v in held.items() if isinstance(v, Tensor)} if isinstance(held, dict) else {}
    if not tensors:
        raise InputError(f"{file} holds no weights by name: give a checkpoint or a state dict.")
    return Published(_unprefixed(tensors), stated)


_CONTAINERS = ("model", "state_dict", "model_state_dict")
_WRAPPERS = ("module.", "model.", "_orig_mod.", "student.")
"""What DistributedDataParallel, Lightning, torch.compile and distillation put before every name."""


def _unprefixed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take wrappers' prefixes, one inside another, off names that all begin with them."""
    while wrapper := next((word for word in _WRAPPERS if all(name.startswith(word) for name in tensors)), None):
        tensors = {name.removeprefix(wrapper): value for name, value in tensors.items()}
    return tensors


def _settings_in(held: dict[Any, Any]) -> dict[str, Any]:
    for key in ("args", "hyper_parameters"):
        value = held.get(key)
        if isinstance(value, argparse.Namespace):
            return vars(value)
        if isinstance(value, dict):
            return value
    return {}


_DTYPES = [type(np.dtype(kind)) for kind in ("float32", "float64", "int32", "int64", "bool", "str")]
_SCALAR = np.float64(0).__reduce__()[0]
_RECONSTRUCT = np.zeros(1).__reduce__()[0]
_PATHS = [
    (pure, f"{module}.{kind}Path")
    for module in ("pathlib", "pathlib._local")
    for pure, kinds in ((PurePosixPath, ("Posix", "PurePosix")), (PureWindowsPath, ("Windows", "PureWindows")))
    for kind in kinds
]
# Beside tensors: what training scripts leave in a checkpoint, all of it plain data.
_PLAIN: list[Any] = [
    argparse.Namespace,
    collections.Counter,
    collections.defaultdict,
    dict,
    np.dtype,
    np.ndarray,
    *_DTYPES,
    *_PATHS,
    _SCALAR,
    _RECONSTRUCT,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_RECONSTRUCT, "numpy.core.multiarray._reconstruct"),
]
