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
    429: "There is no room.",
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


def question_body(limits: Limits) -> Schema:
    """Describe one question, multipart or JSON."""
    form = {
        "type": "object",
        "required": ["image", "phrases"],
        "properties": {
            "image": {"type": "string", "format": "binary", "description": "A JPEG, PNG, WebP, GIF, BMP or AVIF file."},
            "phrases": _phrases(limits, "The field once for each thing to find"),
        },
        "additionalProperties": False,
    }
    return _body({"multipart/form-data": form, "application/json": _question(limits)})


def batch_body(limits: Limits) -> Schema:
    """Describe several questions, JSON."""
    questions = {
        "type": "array",
        "minItems": 1,
        "maxItems": limits.pictures,
        "items": _question(limits),
        "description": f"1 to {limits.pictures}, each a picture and its phrases.",
    }
    return _body(
        {
            "application/json": {
                "type": "object",
                "required": ["questions"],
                "properties": {"questions": questions},
                "additionalProperties": False,
            }
        }
    )


def _question(limits: Limits) -> Schema:
    return {
        "type": "object",
        "required": ["image", "phrases"],
        "properties": {
            "image": {
                "type": "string",
                "format": "byte",
                "contentEncoding": "base64",
                "description": "The file's bytes in base64; a data: URL is understood too.",
            },
            "phrases": _phrases(limits, "What to find"),
        },
        "additionalProperties": False,
    }


def _phrases(limits: Limits, what: str) -> Schema:
    return {
        "type": "array",
        "minItems": 1,
        "maxItems": limits.phrases,
        "items": {"type": "string", "minLength": 1, "maxLength": limits.letters, "pattern": r"\S"},
        "description": f"{what}: 1 to {limits.phrases}, each no longer than the model reads.",
    }


def _body(media: dict[str, Schema]) -> Schema:
    content = {kind: {"schema": schema} for kind, schema in media.items()}
    return {"requestBody": {"required": True, "content": content}}
