"""Request and response bodies of the HTTP API."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema

from epmvg.core.types import Prediction
from epmvg.core.version import __version__

MAX_PHRASES = 32  # per request
MAX_PHRASE_LENGTH = 1_000  # characters
MAX_TOP_K = 20

MinScore = float | Literal["auto"]
"""Score from which a phrase counts as found; "auto" is the threshold stored with the model."""

_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def _decode_base64(value: Any) -> Any:
    """Decode base64 with or without the prefix of a data: URL, line breaks, padding and the URL-safe alphabet."""
    if not isinstance(value, str):
        return value
    text = value.partition(",")[2] if value[:5].lower() == "data:" else value
    try:
        symbols = text.encode("ascii").translate(_URL_SAFE, b" \t\r\n\v\f").rstrip(b"=")
        return base64.b64decode(symbols + b"=" * (-len(symbols) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("the text is not base64") from error


def _check_phrase(phrase: str) -> str:
    if not phrase.strip():
        raise ValueError("the phrase is empty")
    return phrase


def _check_min_score(value: Any) -> MinScore:
    if value == "auto":
        return "auto"
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError("give a number from 0 to 1, or auto")
    return float(value)


def _list_or_one(schema: dict[str, Any]) -> None:
    """Change the schema of a list of phrases to that of a list or one phrase."""
    phrases = {key: schema.pop(key) for key in ("type", "items", "minItems", "maxItems")}
    schema["anyOf"] = [phrases, phrases["items"]]


Base64Image = Annotated[
    bytes,
    BeforeValidator(_decode_base64),
    WithJsonSchema({"type": "string", "format": "byte", "description": "An image file in base64, or a data: URL."}),
]
Phrase = Annotated[
    str,
    Field(
        strict=True,
        min_length=1,
        max_length=MAX_PHRASE_LENGTH,
        json_schema_extra={"pattern": r"[^\s\x1c-\x1f\x85]"},  # a character that Python does not strip
    ),
    AfterValidator(_check_phrase),
]


class Query(BaseModel):
    """An image and the phrases to find in it."""

    model_config = ConfigDict(extra="forbid")

    image: Base64Image
    phrases: Annotated[
        list[Phrase],
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
        Field(min_length=1, max_length=MAX_PHRASES, description="To find.", json_schema_extra=_list_or_one),
    ]
    min_score: Annotated[
        MinScore,
        PlainValidator(_check_min_score, json_schema_input_type=Annotated[float, Field(ge=0, le=1)] | Literal["auto"]),
        Field(description="Score from which a phrase is `found`; auto is the threshold stored with the model."),
    ] = 0.0
    top_k: Annotated[
        int,
        Field(strict=True, ge=1, le=MAX_TOP_K, description="With more than 1, up to so many `candidates` each."),
        BeforeValidator(lambda value: int(value) if isinstance(value, float) and value.is_integer() else value),
    ] = 1


class GroundResponse(BaseModel):
    """Size of the upright image in pixels, and one prediction per phrase, in the order of the phrases."""

    width: int
    height: int
    results: list[Prediction]


class ErrorResponse(BaseModel):
    """Why a request failed, in one sentence."""

    error: str


class Health(BaseModel):
    """State of a running server and of its model; None where the model does not state it."""

    status: Literal["ok"] = "ok"
    version: str = __version__
    model: str
    domain: str | None
    threshold: float | None


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the error statuses of a route for OpenAPI."""
    return {status: {"model": ErrorResponse} for status in statuses}


def query_body() -> dict[str, Any]:
    """Describe a query as JSON and as a multipart form for OpenAPI."""
    schema = Query.model_json_schema()
    file = {"type": "string", "format": "binary", "description": "An image file."}
    form = schema | {"properties": schema["properties"] | {"image": file}}
    content = {"multipart/form-data": {"schema": form}, "application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}
