"""Presets: each model is a dict literal of numbers, the pretrained weights of its backbone named by timm's tag."""

from __future__ import annotations

import difflib
from typing import Any

from epmvg.core.types import InputError

BERT_BASE = {"hidden": 768, "layers": 12, "heads": 12, "feedforward": 3072, "vocabulary": 30_522}
_TINY_BERT = {"hidden": 32, "layers": 1, "heads": 2, "feedforward": 64, "vocabulary": 30_522, "frozen": []}
MINILM_L6 = {"hidden": 384, "layers": 6, "heads": 12, "feedforward": 1536, "vocabulary": 30_522}

# TransVG at 640 px (SPEC: 6 encoder and 6 fusion layers of width 256, FFN 2048, conv1 and layer1 never train).
_TRANSVG: dict[str, Any] = {
    "image_size": 640,
    "max_length": 20,
    "visual": {
        "backbone": "resnet50.tv_in1k",
        "strides": [32],
        "width": 256,
        "layers": 6,
        "heads": 8,
        "hidden": 2048,
        "frozen": ["conv1", "bn1", "layer1"],
    },
    "linguistic": BERT_BASE | {"frozen": []},
    "fusion": {"width": 256, "layers": 6, "heads": 8, "hidden": 2048},
    "dropout": 0.1,
    "vls": "first",
    "position": "learned",
    "normalize": False,
    "similarity": False,
    "anchored": False,
    "score": False,
}

# QRNet at 640 px: Swin-S and its neck; tokens at strides 32 and 64, no encoder of DETR (SPEC: 500 visual tokens).
_QRNET: dict[str, Any] = _TRANSVG | {
    "visual": {
        "backbone": "swin_small_patch4_window7_224.ms_in1k",
        "shape": {},
        "strides": [32, 64],
        "width": 256,
        "gates": "repaired",
        "pool": "input",
        "drop_path": 0.2,
        "frozen": [],
    },
}

PRESETS: dict[str, dict[str, Any]] = {
    "transvg-r50": _TRANSVG,
    "transvg-r101": _TRANSVG | {"visual": _TRANSVG["visual"] | {"backbone": "resnet101.tv_in1k"}},
    "transvg-swin-s": _QRNET | {"visual": _QRNET["visual"] | {"gates": "off"}},
    "qrnet-swin-s": _QRNET,
    "mini": _TRANSVG
    | {
        "image_size": 256,
        "visual": {
            "backbone": "tf_efficientnet_lite0",
            "strides": [16, 32],
            "width": 256,
            "layers": 1,
            "heads": 4,
            "hidden": 512,
            "frozen": ["conv_stem", "bn1", "blocks.0", "blocks.1"],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
        "linguistic": MINILM_L6 | {"frozen": ["all"]},
        "fusion": {"width": 256, "layers": 3, "heads": 4, "hidden": 512},
        "dropout": 0.0,
        "vls": "mean",
        "position": "sine",
        "normalize": True,
        "similarity": True,
        "anchored": True,
        "score": True,
    },
    "tiny-resnet": _TRANSVG
    | {
        "image_size": 64,
        "visual": {
            "backbone": "resnet10t",
            "strides": [16],
            "width": 32,
            "layers": 1,
            "heads": 2,
            "hidden": 64,
            "frozen": [],
        },
        "linguistic": _TINY_BERT,
        "fusion": {"width": 32, "layers": 2, "heads": 2, "hidden": 64},
    },
    "tiny-swin": _QRNET
    | {
        "image_size": 64,
        "visual": {
            "backbone": "swin_tiny_patch4_window7_224",
            "shape": {"embed_dim": 16, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 4, 8]},
            "strides": [8, 16],
            "width": 32,
            "gates": "repaired",
            "pool": "input",
            "drop_path": 0.0,
            "frozen": [],
        },
        "linguistic": _TINY_BERT,
        "fusion": {"width": 32, "layers": 2, "heads": 2, "hidden": 64},
    },
}

# What `epmvg convert --as` can load into a preset.
LOADABLE = {
    "transvg-r50": "transvg, detr, imagenet",
    "transvg-r101": "transvg, detr, imagenet",
    "transvg-swin-s": "swin, imagenet",
    "qrnet-swin-s": "qrnet, swin, imagenet",
}


def list_models() -> list[str]:
    """Return the names `create_model` knows."""
    return sorted(PRESETS)


def preset(name: str, **overrides: Any) -> dict[str, Any]:
    """Return a preset's numbers with some replaced; nested groups (`visual`, ...) are merged key by key.

    Raises:
        InputError: unknown preset or key.
    """
    if name not in PRESETS:
        raise InputError(f"There is no model {name!r}{_did_you_mean(name, PRESETS)}")
    return _merge(PRESETS[name], overrides, f"model {name}")


def _merge(base: dict[str, Any], overrides: dict[str, Any], where: str) -> dict[str, Any]:
    """Replace known keys of `base`, nested groups key by key; unknown keys are refused."""
    if not isinstance(overrides, dict):
        raise InputError(f"{where} is a group of settings, not {overrides!r}: name a setting of it.")
    merged = dict(base)
    for key, value in overrides.items():
        if key not in base and not (where.endswith(".visual") and key in ("mean", "std")):
            raise InputError(f"{where} has no setting {key!r}{_did_you_mean(key, base)}")
        group = isinstance(base.get(key), dict) and key != "shape"  # timm checks the numbers of a shape
        merged[key] = _merge(base[key], value, f"{where}.{key}") if group else value
    return merged


def _did_you_mean(word: str, known: dict[str, Any]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(sorted(known))}."
