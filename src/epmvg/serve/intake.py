"""From the bytes of a request to a picture and phrases; whatever is wrong with them is a `RefusalError`."""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from io import BytesIO
from typing import TypeVar

from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from epmvg.data.jsonl import phrase_fault
from epmvg.data.photos import open_image
from epmvg.serve.limits import Limits, RefusalError
from epmvg.types import InputError

Body = TypeVar("Body", bound=BaseModel)

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")
"""What browsers show. Pillow's other readers are kept from strangers' bytes."""


logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it would log strangers' broken forms letter by letter


class Question(BaseModel):
    """A picture and what to find in it."""

    model_config = ConfigDict(extra="forbid")

    image: str  # base64, perhaps after the head of a data: URL
    phrases: list[str]


class Questions(BaseModel):
    """Several pictures, each with its own phrases."""

    model_config = ConfigDict(extra="forbid")

    questions: list[Question]


@dataclass(frozen=True, slots=True)
class Asked:
    """One question as it arrived, the picture not yet decoded."""

    image: bytes
    phrases: list[str]


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture and the digest of the bytes it came from."""

    digest: bytes
    image: Image.Image


class _InMemory(MultiPartParser):
    spool_max_size = 2**62  # photos touch no disk; the body's limit bounds them

    def close(self) -> None:
        """Let go of every file, also of one whose end never came."""
        for file in self._files_to_close_on_error:
            file.close()


async def read_question(request: Request, limits: Limits) -> Asked:
    """Read one question, multipart or JSON.

    Raises:
        RefusalError: 400, 413, 415 or 422.
    """
    kind = _kind(request)
    if kind == "application/json":
        return asked_of(_parsed(Question, await _body(request, limits)), limits)
    if kind != "multipart/form-data":
        raise RefusalError(415, "Send multipart/form-data with `image` and `phrases`, or application/json.")
    parser = _InMemory(request.headers, _bounded(request, limits), max_files=2, max_fields=limits.phrases + 2)
    try:
        return await _from_form(await parser.parse(), limits)
    except (MultiPartException, KeyError, ValueError, LookupError) as error:
        raise RefusalError(
            400, f"The multipart body cannot be read ({_line(error)}): send it as a browser does."
        ) from error
    finally:
        parser.close()


async def read_questions(request: Request, limits: Limits) -> list[Question]:
    """Read a batch of questions, JSON; their pictures are still base64.

    Raises:
        RefusalError: 400, 413, 415 or 422.
    """
    if _kind(request) != "application/json":
        raise RefusalError(415, "Send application/json with `questions`.")
    questions = _parsed(Questions, await _body(request, limits)).questions
    if not 0 < len(questions) <= limits.pictures:
        raise RefusalError(422, f"There are {len(questions)} questions: send 1 to {limits.pictures}.")
    return questions


def asked_of(question: Question, limits: Limits) -> Asked:
    """Turn a question in JSON into what was asked.

    Raises:
        RefusalError: 422.
    """
    text = question.image
    if text[:5].lower() == "data:":
        text = text.partition(",")[2]
    try:
        image = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusalError(422, "The field `image` is not base64: encode the file's bytes.") from error
    return Asked(image, _checked(question.phrases, limits))


def decode(image: bytes, limits: Limits) -> Image.Image:
    """Decode an uploaded picture, upright and RGB.

    Raises:
        RefusalError: 422, it is no picture, broken, too large or of a format not served.
    """
    try:
        with Image.open(BytesIO(image), formats=FORMATS) as head:  # reads the header only
            width, height = head.size
        if width * height <= limits.pixels:
            return open_image(BytesIO(image))
    except InputError as error:
        raise RefusalError(422, str(error)) from error
    except Exception as error:  # a broken file may raise anything from inside its reader
        raise RefusalError(422, f"The image cannot be read as {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.") from error
    raise RefusalError(422, f"The image has {width} x {height} pixels, more than {limits.pixels:,}: scale it down.")


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _bounded(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    """Pass a body on, piece by piece, until it is longer than the limit."""
    refusal = RefusalError(413, f"The request is larger than {limits.upload:,} bytes: send a smaller picture.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.upload:
        raise refusal
    size = 0
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > limits.upload:
                raise refusal
            yield piece
    except ClientDisconnect as error:
        raise RefusalError(400, "The request ended early: send it again.") from error


async def _body(request: Request, limits: Limits) -> bytes:
    return b"".join([piece async for piece in _bounded(request, limits)])


def _parsed(model: type[Body], body: bytes) -> Body:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:80] or "The body"
        status = 400 if first["type"] == "json_invalid" else 422
        raise RefusalError(status, f"{place}: {_line(first['msg'])}.") from error


async def _from_form(form: FormData, limits: Limits) -> Asked:
    unknown = sorted(set(form) - {"image", "phrases"})
    if unknown:
        raise RefusalError(422, f"There is no field {unknown[0][:40]!r}: send `image` and `phrases`.")
    images = form.getlist("image")
    if len(images) != 1 or not isinstance(images[0], UploadFile):
        raise RefusalError(422, "The field `image` must be one file.")
    phrases = [phrase for phrase in form.getlist("phrases") if isinstance(phrase, str)]
    if len(phrases) != len(form.getlist("phrases")):
        raise RefusalError(422, "The field `phrases` must be text, once for each phrase.")
    return Asked(await images[0].read(), _checked(phrases, limits))


def _checked(phrases: list[str], limits: Limits) -> list[str]:
    if not 0 < len(phrases) <= limits.phrases:
        raise RefusalError(422, f"There are {len(phrases)} phrases: send 1 to {limits.phrases}.")
    for phrase in phrases:
        if len(phrase) > limits.letters:
            raise RefusalError(
                422, f"A phrase has {len(phrase):,} characters, more than {limits.letters:,}: shorten it."
            )
        fault = phrase_fault(phrase)
        if fault is not None:
            raise RefusalError(422, f"The phrase {phrase[:40]!r} cannot be asked: {fault}.")
        if any(0xD800 <= ord(letter) <= 0xDFFF for letter in phrase):
            raise RefusalError(422, "A phrase holds half a character (a lone surrogate): send valid UTF-8.")
    return phrases


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")
