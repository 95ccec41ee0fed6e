"""Published checkpoints, read by torch's weights-only unpickler, which builds nothing but tensors and plain data."""

from __future__ import annotations

import argparse
import collections
import json
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from epmvg.core.types import InputError

_CONTAINERS = ("model", "state_dict", "model_state_dict")
_WRAPPERS = ("module.", "model.", "_orig_mod.", "student.")
"""Prefixes of DistributedDataParallel, Lightning, torch.compile and distillation."""

_IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")
"""Files of weights in folders of transformers and timm, with a config.json beside them."""

_STATED = {"encoder_attention_heads": "nheads", "position_embedding_type": "position_embedding"}
"""Settings of a DETR in transformers' config.json, and what DETR's own checkpoints call them."""

_SCALAR = np.float64(0).__reduce__()[0]
_RECONSTRUCT = np.zeros(1).__reduce__()[0]
_PLAIN: list[Any] = [
    *(argparse.Namespace, collections.Counter, collections.defaultdict, dict, np.dtype, np.ndarray),
    *(type(np.dtype(kind)) for kind in ("float32", "float64", "int32", "int64", "bool", "str")),
    *(_SCALAR, _RECONSTRUCT),
    (argparse.Namespace, "mmengine.logging.history_buffer.HistoryBuffer"),  # logs in mmdetection 3's own checkpoints
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_RECONSTRUCT, "numpy.core.multiarray._reconstruct"),
    *(
        (PureWindowsPath if "Windows" in name else PurePosixPath, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
    ),
]
"""Classes besides tensors that training scripts leave in a checkpoint, all of them plain data."""


def read_published(file: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint: a file, or a folder of transformers or timm.

    Returns:
        Its tensors by name, without the prefixes of wrappers; and the settings of its training by name, empty where
        the file states none.

    Raises:
        InputError: no such file, not a checkpoint, or one that would have to run code to be opened.
    """
    file = Path(file)
    if file.is_dir():
        file = next((file / name for name in _IN_FOLDERS if (file / name).is_file()), file / _IN_FOLDERS[0])
    if not file.is_file():
        raise InputError(f"{file} does not exist. Give a .pth or .safetensors file, or a folder with {_IN_FOLDERS[0]}.")
    content = _read(file)
    stated = _read_config(file.with_name("config.json")) if file.name in _IN_FOLDERS else {}
    while isinstance(content, dict):
        args = content.get("args")
        stated = (vars(args) if isinstance(args, argparse.Namespace) else args) or stated
        inner = next((content[key] for key in _CONTAINERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise InputError(f"{file} holds no weights by name. Give a checkpoint or a state dict.")
    while prefix := next((word for word in _WRAPPERS if all(name.startswith(word) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors, stated


def _read_config(file: Path) -> dict[str, Any]:
    """Return the settings in a config.json of transformers, those of the backbone included; {} where there is none."""
    try:
        config = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        values = [*(config.get("backbone_config") or {}).items(), *config.items()]
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{file} cannot be read ({type(error).__name__}). Download the folder again.") from error
    return {_STATED.get(key, key): value for key, value in values if value is not None}


def _read(file: Path) -> Any:
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        with torch.serialization.safe_globals(_PLAIN):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not its own
        if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise InputError(
                f"{file} contains a {refused[1]}, which is not plain data, and was not opened. "
                "Save its state dict alone where you trust it."
            ) from error
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(f"{file} is not a checkpoint that can be read ({reason}). Download it again.") from error
