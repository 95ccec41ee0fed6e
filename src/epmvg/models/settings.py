"""Settings of a model: types, ranges and what must fit together, validated before anything is built."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from epmvg.core.types import InputError
from epmvg.models.grounder import Position, Vls
from epmvg.models.swin import Gates, Pool
from epmvg.models.visual_encoder import IMAGENET_MEAN, IMAGENET_STD

_Positive = Annotated[int, Field(gt=0)]
_Fraction = Annotated[float, Field(ge=0, lt=1)]
_Frozen = str | list[str]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Transformer(_Settings):
    width: _Positive
    layers: _Positive
    heads: _Positive
    dim_feedforward: _Positive


class _VisualEncoder(_Settings):
    backbone: str
    strides: Annotated[list[_Positive], Field(min_length=1)]
    width: _Positive
    frozen: _Frozen
    mean: Annotated[list[float], Field(min_length=3, max_length=3)] = list(IMAGENET_MEAN)
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)] = list(IMAGENET_STD)


class _CnnEncoder(_VisualEncoder):
    layers: Annotated[int, Field(ge=0)]
    heads: _Positive
    dim_feedforward: _Positive


class _SwinEncoder(_VisualEncoder):
    backbone_kwargs: dict[str, Any]
    gates: Annotated[
        Gates,
        BeforeValidator(lambda value: "off" if value is False else value),  # YAML reads the word off as False
    ]
    pool: Pool
    drop_path: _Fraction


class _TextEncoder(_Transformer):
    vocab_size: _Positive
    frozen: _Frozen


class _Model(_Settings):
    image_size: _Positive
    max_length: Annotated[int, Field(ge=3, le=512)]  # [CLS], a word piece and [SEP]; BERT has 512 positions
    visual_encoder: _CnnEncoder | _SwinEncoder
    text_encoder: _TextEncoder
    fusion: _Transformer
    dropout: _Fraction
    vls: Vls
    position: Position
    normalize: bool
    similarity: bool
    dense_head: bool
    iou_head: bool


class _CnnModel(_Model):
    visual_encoder: _CnnEncoder


class _SwinModel(_Model):
    visual_encoder: _SwinEncoder


def validated(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a model's settings with every value of its type.

    Raises:
        InputError: a value is of another type, out of range, unknown, or does not fit the others.
    """
    kind = _SwinModel if "gates" in settings.get("visual_encoder", {}) else _CnnModel
    try:
        values = kind.model_validate(settings).model_dump(exclude_unset=True)
    except ValidationError as error:
        first = error.errors()[0]
        key, message = ".".join(map(str, first["loc"])), first["msg"]
        given = "" if first["type"] == "missing" else f"={first['input']}"
        raise InputError(f"model.{key}{given} is not valid: {message[0].lower()}{message[1:]}.") from error
    _check_fit(values)
    return values


def _check_fit(values: dict[str, Any]) -> None:
    has_encoder = values["visual_encoder"].get("layers", 0) > 0
    with_heads = ["text_encoder", "fusion", *(["visual_encoder"] if has_encoder else [])]
    with_sine = [
        *(["visual_encoder"] if has_encoder else []),
        *(["fusion"] if values["position"] == "sine" else []),
    ]
    for part in with_heads:
        width, heads = values[part]["width"], values[part]["heads"]
        if width % heads:
            raise InputError(f"model.{part}.heads={heads} does not divide model.{part}.width={width}: use a divisor.")
    for part in with_sine:
        if (width := values[part]["width"]) % 4:
            raise InputError(f"model.{part}.width={width} does not fit sine positions: use a multiple of 4.")
    strides = values["visual_encoder"]["strides"]
    if len(set(strides)) < len(strides):
        raise InputError(f"model.visual_encoder.strides={strides} names a stride twice: give each once.")
