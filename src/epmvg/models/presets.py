"""Presets: the settings of each model, the pretrained weights of its backbone named by timm's tag."""

from __future__ import annotations

import difflib
from typing import Any

from epmvg.core.types import InputError

BERT_BASE = {"width": 768, "layers": 12, "heads": 12, "dim_feedforward": 3072, "vocab_size": 30_522}
MINILM_L6 = {"width": 384, "layers": 6, "heads": 12, "dim_feedforward": 1536, "vocab_size": 30_522}
_TINY_BERT = {"width": 32, "layers": 1, "heads": 2, "dim_feedforward": 64, "vocab_size": 30_522, "frozen": []}
_TINY_FUSION = {"width": 32, "layers": 2, "heads": 2, "dim_feedforward": 64}

# TransVG at 640 px: 6 encoder and 6 fusion layers of width 256, FFN 2048; conv1 and layer1 never train.
_TRANSVG: dict[str, Any] = {
    "image_size": 640,
    "max_length": 20,
    "visual_encoder": {
        "backbone": "resnet50.tv_in1k",
        "strides": [32],
        "width": 256,
        "layers": 6,
        "heads": 8,
        "dim_feedforward": 2048,
        "frozen": ["conv1", "bn1", "layer1"],
    },
    "text_encoder": BERT_BASE | {"frozen": []},
    "fusion": {"width": 256, "layers": 6, "heads": 8, "dim_feedforward": 2048},
    "dropout": 0.1,
    "vls": "first",
    "position": "learned",
    "normalize": False,
    "similarity": False,
    "dense_head": False,
    "iou_head": False,
}

# QRNet at 640 px: Swin-S and its neck; tokens at strides 32 and 64 (500 of them), without DETR's encoder.
_QRNET: dict[str, Any] = _TRANSVG | {
    "visual_encoder": {
        "backbone": "swin_small_patch4_window7_224.ms_in1k",
        "backbone_kwargs": {},
        "strides": [32, 64],
        "width": 256,
        "gates": "normal_init",
        "pool": "input",
        "drop_path": 0.2,
        "frozen": [],
    },
}

PRESETS: dict[str, dict[str, Any]] = {
    "transvg-r50": _TRANSVG,
    "transvg-r101": _TRANSVG | {"visual_encoder": _TRANSVG["visual_encoder"] | {"backbone": "resnet101.tv_in1k"}},
    "transvg-swin-s": _QRNET | {"visual_encoder": _QRNET["visual_encoder"] | {"gates": "off"}},
    "qrnet-swin-s": _QRNET,
    "mini": _TRANSVG
    | {
        "image_size": 256,
        "visual_encoder": {
            "backbone": "tf_efficientnet_lite0",
            "strides": [16, 32],
            "width": 256,
            "layers": 1,
            "heads": 4,
            "dim_feedforward": 512,
            "frozen": ["conv_stem", "bn1", "blocks.0", "blocks.1"],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
        "text_encoder": MINILM_L6 | {"frozen": ["all"]},
        "fusion": {"width": 256, "layers": 3, "heads": 4, "dim_feedforward": 512},
        "dropout": 0.0,
        "vls": "mean",
        "position": "sine",
        "normalize": True,
        "similarity": True,
        "dense_head": True,
        "iou_head": True,
    },
    "tiny-resnet": _TRANSVG
    | {
        "image_size": 64,
        "visual_encoder": {
            "backbone": "resnet10t",
            "strides": [16],
            "width": 32,
            "layers": 1,
            "heads": 2,
            "dim_feedforward": 64,
            "frozen": [],
        },
        "text_encoder": _TINY_BERT,
        "fusion": _TINY_FUSION,
    },
    "tiny-swin": _QRNET
    | {
        "image_size": 64,
        "visual_encoder": _QRNET["visual_encoder"]
        | {
            "backbone": "swin_tiny_patch4_window7_224",
            "backbone_kwargs": {"embed_dim": 16, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 4, 8]},
            "strides": [8, 16],
            "width": 32,
            "drop_path": 0.0,
        },
        "text_encoder": _TINY_BERT,
        "fusion": _TINY_FUSION,
    },
}

LOADABLE = {
    "transvg-r50": "transvg, detr, imagenet",
    "transvg-r101": "transvg, detr, imagenet",
    "transvg-swin-s": "swin, imagenet",
    "qrnet-swin-s": "qrnet, swin, imagenet",
}
"""What `epmvg convert --as` can load into a preset."""


def list_models() -> list[str]:
    """Return the names that `create_model` takes."""
    return sorted(PRESETS)


def preset(name: str, **overrides: Any) -> dict[str, Any]:
    """Return a preset's settings with some replaced; nested groups (`visual_encoder`, ...) are merged key by key.

    Raises:
        InputError: unknown preset or key.
    """
    if name not in PRESETS:
        raise InputError(f"There is no model {name!r}{_did_you_mean(name, PRESETS)}")
    return _merge(PRESETS[name], overrides, f"model {name}")


def _merge(base: dict[str, Any], overrides: dict[str, Any], where: str) -> dict[str, Any]:
    """Replace known keys of `base`, nested groups key by key."""
    if not isinstance(overrides, dict):
        raise InputError(f"{where} is a group of settings, not {overrides!r}: name a setting of it.")
    merged = dict(base)
    for key, value in overrides.items():
        if key not in base and not (where.endswith(".visual_encoder") and key in ("mean", "std")):
            raise InputError(f"{where} has no setting {key!r}{_did_you_mean(key, base)}")
        is_group = isinstance(base.get(key), dict) and key != "backbone_kwargs"
        merged[key] = _merge(base[key], value, f"{where}.{key}") if is_group else value
    return merged


def _did_you_mean(word: str, known: dict[str, Any]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(sorted(known))}."
