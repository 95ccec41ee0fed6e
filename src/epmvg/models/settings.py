"""Settings of a model: types, ranges and what must fit together, checked before anything is built."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from epmvg.core.types import InputError
from epmvg.models.grounder import Position, Vls
from epmvg.models.visual_encoder import IMAGENET_MEAN, IMAGENET_STD

_Positive = Annotated[int, Field(gt=0)]
_Share = Annotated[float, Field(ge=0, lt=1)]
_Frozen = str | list[str]
_Strides = Annotated[list[_Positive], Field(min_length=1)]
_Gates = Annotated[
    Literal["off", "as_published", "repaired"],
    BeforeValidator(lambda value: "off" if value is False else value),  # YAML reads the word off as False
]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Branch(_Settings):
    backbone: str
    strides: _Strides
    width: _Positive
    frozen: _Frozen
    mean: Annotated[list[float], Field(min_length=3, max_length=3)] = list(IMAGENET_MEAN)
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)] = list(IMAGENET_STD)


class _Conv(_Branch):
    layers: Annotated[int, Field(ge=0)]
    heads: _Positive
    hidden: _Positive


class _Swin(_Branch):
    shape: dict[str, Any]
    gates: _Gates
    pool: Literal["input", "content"]
    drop_path: _Share


class _Linguistic(_Settings):
    hidden: _Positive
    layers: _Positive
    heads: _Positive
    feedforward: _Positive
    vocabulary: _Positive
    frozen: _Frozen


class _Fusion(_Settings):
    width: _Positive
    layers: _Positive
    heads: _Positive
    hidden: _Positive


class _Model(_Settings):
    image_size: _Positive
    max_length: Annotated[int, Field(ge=3, le=512)]  # [CLS], a word piece and [SEP]; BERT has 512 positions
    visual: _Conv | _Swin
    linguistic: _Linguistic
    fusion: _Fusion
    dropout: _Share
    vls: Vls
    position: Position
    normalize: bool
    similarity: bool
    anchored: bool
    score: bool


class _ConvModel(_Model):
    visual: _Conv


class _SwinModel(_Model):
    visual: _Swin


def checked(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a model's settings with every value of its type.

    Raises:
        InputError: a value is of another type, out of range, unknown, or does not fit the others.
    """
    visual = settings.get("visual")
    kind = _SwinModel if isinstance(visual, dict) and "gates" in visual else _ConvModel
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
    visual, fusion = values["visual"], values["fusion"]
    encodes = visual.get("layers", 0) > 0
    multiples = [
        ("linguistic.hidden", values["linguistic"]["hidden"], "linguistic.heads", values["linguistic"]["heads"]),
        ("fusion.width", fusion["width"], "fusion.heads", fusion["heads"]),
    ]
    if encodes:
        multiples.append(("visual.width", visual["width"], "visual.heads", visual["heads"]))
    for name, width, heads, count in multiples:
        if width % count:
            raise InputError(f"model.{heads}={count} does not divide model.{name}={width}: give a divisor of it.")
    coded = [
        ("visual.width", visual["width"], encodes),
        ("fusion.width", fusion["width"], values["position"] == "sine"),
    ]
    for name, width, needed in coded:
        if needed and width % 4:
            raise InputError(f"model.{name}={width} does not fit the sine code of positions: give a multiple of 4.")
    if len(set(visual["strides"])) < len(visual["strides"]):
        raise InputError(f"model.visual.strides={visual['strides']} names a stride twice: give each once.")
