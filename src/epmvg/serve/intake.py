"""From the bytes of a request to what is asked; whatever is wrong with them is a `RefusalError`."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from epmvg.data.readers.annotations import phrase_error
from epmvg.serve.gate import Share
from epmvg.serve.limits import Limits, RefusalError

Body = TypeVar("Body", bound=BaseModel)
Bound = float | Literal["auto"]
"""A score from which a phrase counts as found; "auto" is the one stored with the model."""

FIELDS = ("image", "phrases", "phrases[]", "min_score")

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it would log strangers' broken forms letter by letter


class Question(BaseModel):
    """A picture and what to find in it."""

    model_config = ConfigDict(extra="forbid")

    image: str  # base64, perhaps after the head of a data: URL
    phrases: Annotated[list[str], BeforeValidator(lambda given: [given] if isinstance(given, str) else given)]
    min_score: Any = None  # a `Bound`; what is wrong with it is one question's matter, not the whole body's


class Questions(BaseModel):
    """Several pictures, each with its own phrases."""

    model_config = ConfigDict(extra="forbid")

    questions: list[Question]


@dataclass(slots=True)
class Asked:
    """One question as it arrived, the picture not yet decoded."""

    image: bytes
    phrases: list[str]
    min_score: Bound


class _InMemory(MultiPartParser):
    spool_max_size = 2**62  # photos touch no disk; the body's limit bounds them

    def close(self) -> None:
        """Let go of every file, also of one whose end never came."""
        for file in self._files_to_close_on_error:
            file.close()


async def read_question(request: Request, limits: Limits, share: Share) -> Asked:
    """Read one question, multipart or JSON.

    Args:
        share: of the room for bodies; grows with what arrives.

    Raises:
        RefusalError: 400, 408, 413, 415, 422 or 429.
    """
    kind = _kind(request)
    if kind == "application/json":
        return asked_of(_parsed(Question, await _body(request, limits, share)), limits)
    if kind != "multipart/form-data":
        raise RefusalError(415, "Send multipart/form-data with `image` and `phrases`, or application/json.")
    pieces = _bounded(request, limits, share)
    parser = _InMemory(request.headers, pieces, max_files=2, max_fields=limits.phrases + 3)
    try:
        return await _from_form(await parser.parse(), limits)
    except (MultiPartException, KeyError, ValueError, LookupError) as error:
        raise RefusalError(
            400, f"The multipart body cannot be read ({_line(error)}): send it as a browser does."
        ) from error
    finally:
        parser.close()


async def read_questions(request: Request, limits: Limits, share: Share) -> list[Question]:
    """Read a batch of questions, JSON; their pictures are still base64.

    Args:
        share: of the room for bodies; grows with what arrives.

    Raises:
        RefusalError: 400, 408, 413, 415, 422 or 429.
    """
    if _kind(request) != "application/json":
        raise RefusalError(415, "Send application/json with `questions`.")
    questions = _parsed(Questions, await _body(request, limits, share)).questions
    if not 0 < len(questions) <= limits.pictures:
        raise RefusalError(422, f"There are {len(questions)} questions: send 1 to {limits.pictures}.")
    return questions


def asked_of(question: Question, limits: Limits) -> Asked:
    """Turn a question in JSON into what was asked.

    Raises:
        RefusalError: 422.
    """
    bound = question.min_score
    if isinstance(bound, str) and bound != "auto":  # text is for forms
        raise _no_bound(bound)
    return Asked(_from_base64(question.image), _checked(question.phrases, limits), _bound(bound))


_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def _from_base64(text: str) -> bytes:
    """Decode base64 with or without the head of a data: URL, line breaks, padding and the URL-safe letters."""
    if text[:5].lower() == "data:":
        text = text.partition(",")[2]
    try:
        letters = text.encode("ascii").translate(_URL_SAFE, b" \t\r\n\v\f").rstrip(b"=")
        return base64.b64decode(letters + b"=" * (-len(letters) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusalError(422, "The field `image` is not base64: encode the file's bytes.") from error


def _bound(given: object) -> Bound:
    if given is None:
        return 0.0
    if given == "auto":
        return "auto"
    try:
        bound = float(given) if isinstance(given, int | float | str) and not isinstance(given, bool) else -1.0
    except (ValueError, OverflowError):
        bound = -1.0
    if not 0 <= bound <= 1:
        raise _no_bound(given)
    return bound


def _no_bound(given: object) -> RefusalError:
    return RefusalError(422, f"The field `min_score` is {_line(given)[:40]!r}: give a number from 0 to 1, or auto.")


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _bounded(request: Request, limits: Limits, share: Share) -> AsyncGenerator[bytes, None]:
    """Pass a body on, piece by piece, until it is longer than the limit or stops arriving."""
    refusal = RefusalError(413, f"The request is larger than {limits.upload:,} bytes: send a smaller picture.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.upload:
        raise refusal
    size = 0
    stream = request.stream()
    try:
        while True:
            async with asyncio.timeout(limits.pause_seconds):
                piece = await anext(stream, None)
            if piece is None:
                return
            size += len(piece)
            if size > limits.upload:
                raise refusal
            share.grow(len(piece))
            yield piece
    except ClientDisconnect as error:
        raise RefusalError(400, "The request ended early: send it again.") from error
    except TimeoutError as error:
        raise RefusalError(
            408, f"The request stopped arriving for {limits.pause_seconds:g} s: send it again."
        ) from error


async def _body(request: Request, limits: Limits, share: Share) -> bytes:
    return b"".join([piece async for piece in _bounded(request, limits, share)])


def _parsed(model: type[Body], body: bytes) -> Body:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:80] or "The body"
        status = 400 if first["type"] == "json_invalid" else 422
        raise RefusalError(status, f"{place}: {_line(first['msg'])}.") from error


async def _from_form(form: FormData, limits: Limits) -> Asked:
    unknown = sorted(set(form) - set(FIELDS))
    if unknown:
        raise RefusalError(422, f"There is no field {unknown[0][:40]!r}: send `image`, `phrases` and `min_score`.")
    images, bounds = form.getlist("image"), form.getlist("min_score")
    if len(images) != 1 or not isinstance(images[0], UploadFile):
        raise RefusalError(422, "The field `image` must be one file.")
    if len(bounds) > 1 or any(isinstance(bound, UploadFile) for bound in bounds):
        raise RefusalError(422, "The field `min_score` must be one text.")
    given = form.getlist("phrases") + form.getlist("phrases[]")
    phrases = [phrase for phrase in given if isinstance(phrase, str)]
    if len(phrases) != len(given):
        raise RefusalError(422, "The field `phrases` must be text, once for each phrase.")
    if len(phrases) == 1:
        phrases = _listed(phrases[0])
    bound = _bound(bounds[0] if bounds else None)
    return Asked(await images[0].read(), _checked(phrases, limits), bound)


def _listed(field: str) -> list[str]:
    """Read a field that holds a JSON list of texts as that list; anything else is one phrase.

    Raises:
        RefusalError: 422, a list in another notation.
    """
    if not re.match(r"\s*\[\s*[\"']", field) or not field.rstrip().endswith("]"):
        return [field]
    try:
        listed = json.loads(field)
    except (ValueError, RecursionError):
        listed = None
    if not isinstance(listed, list) or not all(isinstance(phrase, str) for phrase in listed):
        raise RefusalError(
            422, "The field `phrases` holds a list that is not JSON: send the field once for each phrase."
        )
    return listed


def _checked(phrases: list[str], limits: Limits) -> list[str]:
    if not 0 < len(phrases) <= limits.phrases:
        raise RefusalError(422, f"There are {len(phrases)} phrases: send 1 to {limits.phrases}.")
    for phrase in phrases:
        if len(phrase) > limits.letters:
            raise RefusalError(
                422, f"A phrase has {len(phrase):,} characters, more than {limits.letters:,}: shorten it."
            )
        fault = phrase_error(phrase)
        if fault is not None:
            raise RefusalError(422, f"The phrase {phrase[:40]!r} cannot be asked: {fault}.")
        if any(0xD800 <= ord(letter) <= 0xDFFF for letter in phrase):
            raise RefusalError(422, "A phrase holds half a character (a lone surrogate): send valid UTF-8.")
    return phrases


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")
