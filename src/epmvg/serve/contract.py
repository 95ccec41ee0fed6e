"""What OpenAPI tells of bodies and faults; the bounds are those of the server that tells it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from epmvg.serve.limits import Limits

Schema = dict[str, Any]


class Fault(BaseModel):
    """Why something was not served."""

    error: str


MEANINGS = {
    400: "The body cannot be parsed.",
    401: "The bearer token is missing or wrong (only where the server has one).",
    408: "The request took too long to arrive.",
    413: "The body is larger than the server takes.",
    415: "The body is of another kind.",
    422: "A picture or phrase cannot be used; the sentence says which and why.",
    429: "There is no room; Retry-After says in how many seconds to ask again.",
    504: "The answer took too long.",
}
HEADERS = {
    401: {"WWW-Authenticate": {"schema": {"const": "Bearer"}}},
    429: {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds after which to ask again."}},
}


def faults(*statuses: int) -> dict[int | str, Schema]:
    """Describe the statuses that are no success."""
    return {
        status: {"model": Fault, "description": MEANINGS[status], "headers": HEADERS.get(status, {})}
        for status in statuses
    }


def question_body(limits: Limits, *, calibrated: bool) -> Schema:
    """Describe one question, multipart or JSON; only a calibrated model takes "auto"."""
    scores: list[Schema] = [{"type": "number", "minimum": 0, "maximum": 1}]
    if calibrated:
        scores.append({"type": "string", "enum": ["auto"]})
    file = {"type": "string", "format": "binary", "description": "A JPEG, PNG, WebP, GIF, BMP, AVIF or TIFF file."}
    several = _phrases(f"The field once for each thing to find, {_how_many(limits)}") | _bounds(limits)
    form = _object(image=file, phrases=several, min_score={"anyOf": scores, "description": MIN_SCORE})
    listed = _phrases(f"What to find, {_how_many(limits)}; or one phrase") | _bounds(limits)
    json = _object(
        image=IMAGE,
        phrases={"anyOf": [listed, listed["items"]]},
        min_score={"anyOf": [*scores, {"type": "null"}], "description": MIN_SCORE},
    )
    return _body({"multipart/form-data": form, "application/json": json})


def batch_body(limits: Limits) -> Schema:
    """Describe several questions, JSON. Phrases out of bounds are their own answer's matter."""
    questions = {
        "type": "array",
        "minItems": 1,
        "maxItems": limits.pictures,
        "items": _object(
            image=IMAGE,
            phrases={"anyOf": [_phrases(f"What to find, {_how_many(limits)}; or one phrase"), {"type": "string"}]},
            min_score={"description": MIN_SCORE},
        ),
        "description": f"1 to {limits.pictures}, each a picture and its phrases.",
    }
    return _body({"application/json": _object(questions=questions)})


PRINTED = r"[^\s\u001c-\u001f\u0085]"
"""A character that is no white space to Python, in the words of JavaScript's patterns."""

IMAGE = {
    "type": "string",
    "format": "byte",
    "contentEncoding": "base64",
    "description": "The file's bytes in base64; a data: URL is understood too.",
}


MIN_SCORE = (
    "The score from which a phrase counts as `found`, 0 to 1 or auto (the model's stored threshold); 0 if absent"
)


def _phrases(description: str) -> Schema:
    return {"type": "array", "items": {"type": "string"}, "description": description}


def _how_many(limits: Limits) -> str:
    return f"1 to {limits.phrases}, of {limits.letters:,} characters at most and no longer than the model reads"


def _bounds(limits: Limits) -> Schema:
    phrase = {"type": "string", "minLength": 1, "maxLength": limits.letters, "pattern": PRINTED}
    return {"minItems": 1, "maxItems": limits.phrases, "items": phrase}


def _object(**properties: Schema) -> Schema:
    """An object with these fields and no others; all but `min_score` are required."""
    required = [name for name in properties if name != "min_score"]
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


def _body(media: dict[str, Schema]) -> Schema:
    content = {kind: {"schema": schema} for kind, schema in media.items()}
    return {"requestBody": {"required": True, "content": content}}
