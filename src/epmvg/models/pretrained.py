"""Pretrained weights of a backbone and a BERT: from installed packages, or from the hubs of timm and transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import timm
import transformers
from transformers import AutoConfig, AutoTokenizer, BertModel

from epmvg.core.types import InputError
from epmvg.models.grounder import Grounder
from epmvg.models.packaged_weights import efficientnet_lite0_state, minilm_folder
from epmvg.models.presets import MINILM_L6

T = TypeVar("T")


def load_pretrained(model: Grounder) -> set[str]:
    """Start the backbone and the text encoder of `model` from published weights, in place; return what was loaded.

    A backbone without a tag gets the one of timm's default weights, so that the settings say what was loaded.
    """
    name = model.settings["visual"]["backbone"]
    if name == "tf_efficientnet_lite0":
        backbone_state = efficientnet_lite0_state()
    else:
        if "." not in name and (default := timm.models.get_pretrained_cfg(name)) is not None and default.tag:
            name = f"{name}.{default.tag}"
        backbone_state = _from_hub(name, lambda: timm.create_model(name, pretrained=True).state_dict())
        model.settings = model.settings | {"visual": model.settings["visual"] | {"backbone": name}}
    wanted = model.visual.backbone.state_dict()
    for key, tensor in wanted.items():
        if key not in backbone_state or backbone_state[key].shape != tensor.shape:
            raise InputError(f"The weights of {name} do not fit at {key!r}: they are of another network.")
    model.visual.backbone.load_state_dict({key: backbone_state[key] for key in wanted})

    is_minilm = {**model.settings["linguistic"], "frozen": []} == {**MINILM_L6, "frozen": []}
    load_bert(model, str(minilm_folder()) if is_minilm else "bert-base-uncased")
    return {name for name in model.state_dict() if name.startswith(("visual.backbone.", "linguistic.bert."))}


def bert_sizes(name: str) -> dict[str, int]:
    """Return the numbers of a BERT on the hub or in a local folder, as `linguistic` settings.

    Raises:
        InputError: there is no such model, or it is no BERT.
    """
    config = _from_hub(name, lambda: AutoConfig.from_pretrained(name))
    if config.model_type != "bert":
        raise InputError(f"{name} is a {config.model_type}: the linguistic branch wants a BERT.")
    return {
        "hidden": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "feedforward": config.intermediate_size,
        "vocabulary": config.vocab_size,
    }


def load_bert(model: Grounder, name: str) -> None:
    """Start the linguistic branch from a BERT on the hub or in a local folder, in place, its tokenizer included.

    Raises:
        InputError: it cannot be had, is no BERT, is one of another kind or size, or lacks some of the weights.
    """
    for key, size in bert_sizes(name).items():
        if model.settings["linguistic"][key] != size:
            raise InputError(
                f"{name} has {key}={size}, the student {model.settings['linguistic'][key]}: choose another."
            )
    config, own = _from_hub(name, lambda: AutoConfig.from_pretrained(name)), model.linguistic.bert.config
    for key in _BERT_FIXED:
        if (stated := getattr(config, key, None)) not in (None, expected := getattr(own, key, "absolute")):
            raise InputError(f"{name} has {key}={stated}, and the linguistic branch {expected}: choose another.")
    logs = cast(Any, transformers).logging
    logs.disable_progress_bar()  # a bar for a hundred tensors
    level = logs.get_verbosity()
    logs.set_verbosity_error()  # what is missing is checked here
    try:
        bert, report = _from_hub(
            name, lambda: cast(Any, BertModel).from_pretrained(name, add_pooling_layer=False, output_loading_info=True)
        )
    finally:
        logs.set_verbosity(level)
    wanted, state = model.linguistic.bert.state_dict(), bert.state_dict()  # without the pooler, which nobody uses
    absent = set(wanted) & (set(report["missing_keys"]) | {key[0] for key in report["mismatched_keys"]})
    if absent:
        raise InputError(
            f"{name} lacks {min(absent)} (and {len(absent) - 1} more): its weights are not of a plain BERT."
        )
    tokenizer = _from_hub(name, lambda: AutoTokenizer.from_pretrained(name))
    if len(tokenizer) > model.settings["linguistic"]["vocabulary"]:
        raise InputError(f"{name} has a tokenizer of {len(tokenizer)} word pieces, more than its weights know.")
    model.linguistic.bert.load_state_dict({key: state[key] for key in wanted})
    model.tokenizer = tokenizer


_BERT_FIXED = (
    *("hidden_act", "layer_norm_eps", "max_position_embeddings", "type_vocab_size", "position_embedding_type"),
    *("is_decoder", "add_cross_attention"),
)
"""What a BERT's configuration decides besides its sizes; the linguistic branch has BERT-base's."""


def _from_hub(name: str, fetch: Callable[[], T]) -> T:
    try:
        return fetch()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"The pretrained weights of {name} could not be fetched ({type(error).__name__}): "
            "check the name and the network, or start from random weights with model.pretrained=false."
        ) from error
