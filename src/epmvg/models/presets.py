"""Settings of a model with TransVG's as defaults, and the presets, which state what differs; imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError

from epmvg.core.types import InputError, did_you_mean

Vls = Literal["first", "mean"]
Position = Literal["learned", "sine"]
Gates = Literal["off", "zero_init", "normal_init"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_Fraction = Annotated[float, Field(ge=0, lt=1)]
_Names = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
_Positive = Annotated[float, Field(gt=0)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Transformer(_Settings):
    width: PositiveInt = 256
    layers: PositiveInt = 6
    heads: PositiveInt = 8
    dim_feedforward: PositiveInt = 2048


class Bert(Transformer):
    width: PositiveInt = 768
    layers: PositiveInt = 12
    heads: PositiveInt = 12
    dim_feedforward: PositiveInt = 3072
    vocab_size: PositiveInt = 30_522
    frozen: _Names = []


class _Backbone(_Settings):
    backbone: str
    strides: Annotated[list[PositiveInt], Field(min_length=1)] = [32]
    frozen: _Names = []
    mean: Annotated[list[float], Field(min_length=3, max_length=3)] = list(IMAGENET_MEAN)
    std: Annotated[list[_Positive], Field(min_length=3, max_length=3)] = list(IMAGENET_STD)


class Cnn(_Backbone, Transformer):
    backbone: str = "resnet50.tv_in1k"
    layers: Annotated[int, Field(ge=0)] = 6
    frozen: _Names = ["conv1", "bn1", "layer1"]


class Swin(_Backbone):
    backbone: str = "swin_small_patch4_window7_224.ms_in1k"
    backbone_kwargs: dict[str, Any] = {}
    strides: Annotated[list[PositiveInt], Field(min_length=1)] = [32, 64]
    width: PositiveInt = 256
    gates: Annotated[
        Gates,
        BeforeValidator(lambda value: "off" if value is False else value),  # YAML reads the word off as False
    ] = "normal_init"
    drop_path: _Fraction = 0.2


class Model(_Settings):
    image_size: PositiveInt = 640
    max_length: Annotated[int, Field(ge=3, le=512)] = 20  # [CLS], a word piece and [SEP]; BERT has 512 positions
    visual_encoder: Cnn = Cnn()
    text_encoder: Bert = Bert()
    fusion: Transformer = Transformer()
    dropout: _Fraction = 0.1
    vls: Vls = "first"
    position: Position = "learned"
    pre_fusion_norm: bool = False
    similarity: bool = False
    dense_head: bool = False
    iou_head: bool = False


class SwinModel(Model):
    visual_encoder: Swin = Swin()  # type: ignore[assignment]


MINILM_L6 = {"width": 384, "layers": 6, "heads": 12, "dim_feedforward": 1536, "vocab_size": 30_522}
_TINY: dict[str, Any] = {
    "image_size": 64,
    "text_encoder": {"width": 32, "layers": 1, "heads": 2, "dim_feedforward": 64},
    "fusion": {"width": 32, "layers": 2, "heads": 2, "dim_feedforward": 64},
}

_DIFFERENCES: dict[str, dict[str, Any]] = {
    "transvg-r50": {},
    "transvg-r101": {"visual_encoder": {"backbone": "resnet101.tv_in1k"}},
    "transvg-swin-s": {"visual_encoder": {"gates": "off"}},
    "qrnet-swin-s": {"visual_encoder": {"gates": "zero_init"}},
    "mini": {
        "image_size": 256,
        "visual_encoder": {
            "backbone": "tf_efficientnet_lite0",
            "strides": [16, 32],
            "layers": 1,
            "heads": 4,
            "dim_feedforward": 512,
            "frozen": ["conv_stem", "bn1", "blocks.0", "blocks.1"],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
        "text_encoder": MINILM_L6 | {"frozen": ["all"]},
        "fusion": {"layers": 3, "heads": 4, "dim_feedforward": 512},
        "dropout": 0.0,
        "vls": "mean",
        "position": "sine",
        "pre_fusion_norm": True,
        "similarity": True,
        "dense_head": True,
        "iou_head": True,
    },
    "tiny-resnet": _TINY
    | {
        "visual_encoder": {
            "backbone": "resnet10t",
            "strides": [16],
            "width": 32,
            "layers": 1,
            "heads": 2,
            "dim_feedforward": 64,
            "frozen": [],
        },
    },
    "tiny-swin": _TINY
    | {
        "visual_encoder": {
            "backbone": "swin_tiny_patch4_window7_224",
            "backbone_kwargs": {"embed_dim": 16, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 4, 8]},
            "strides": [8, 16],
            "width": 32,
            "gates": "normal_init",
            "drop_path": 0.0,
        },
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
        raise InputError(f"There is no model {name!r}. {did_you_mean(name, PRESETS)}")
    return _merge(PRESETS[name], overrides, f"model {name}")


def validated(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a model's complete settings with every value of its type.

    Raises:
        InputError: a value is of another type, out of range, unknown, or does not fit the others.
    """
    kind = SwinModel if "gates" in settings.get("visual_encoder", {}) else Model
    try:
        values = kind.model_validate(settings).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        key, message = ".".join(map(str, first["loc"])), first["msg"]
        raise InputError(f"model.{key}={first['input']} is not valid: {message[0].lower()}{message[1:]}.") from error
    _check_fit(values)
    return values


def _check_fit(values: dict[str, Any]) -> None:
    with_sine = ["visual_encoder"] if values["visual_encoder"].get("layers", 0) > 0 else []
    for part in ["text_encoder", "fusion", *with_sine]:
        width, heads = values[part]["width"], values[part]["heads"]
        if width % heads:
            raise InputError(f"model.{part}.heads={heads} does not divide model.{part}.width={width}. Use a divisor.")
    for part in [*with_sine, *(["fusion"] if values["position"] == "sine" else [])]:
        if (width := values[part]["width"]) % 4:
            raise InputError(f"model.{part}.width={width} does not fit sine positions. Use a multiple of 4.")
    strides = values["visual_encoder"]["strides"]
    if len(set(strides)) < len(strides):
        raise InputError(f"model.visual_encoder.strides={strides} names a stride twice. Give each once.")


def _merge(base: dict[str, Any], overrides: dict[str, Any], where: str) -> dict[str, Any]:
    """Replace known keys of `base`, nested groups key by key."""
    if not isinstance(overrides, dict):
        raise InputError(f"{where} is a group of settings, not {overrides!r}. Name a setting of it.")
    merged = dict(base)
    for key, value in overrides.items():
        if key not in base:
            raise InputError(f"{where} has no setting {key!r}. {did_you_mean(key, base)}")
        is_group = isinstance(base[key], dict) and key != "backbone_kwargs"
        merged[key] = _merge(base[key], value, f"{where}.{key}") if is_group else value
    return merged


PRESETS = {name: validated(differences) for name, differences in _DIFFERENCES.items()}
"""Complete settings by name."""
