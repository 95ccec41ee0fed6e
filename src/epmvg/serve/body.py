"""Read request bodies within a server's limits."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Callable
from typing import Any

from fastapi import HTTPException, Request
from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from epmvg.serve.limits import Limits
from epmvg.serve.schemas import MAX_PHRASES, Query

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it logs every character of a broken form


class MemoryParser(MultiPartParser):
    """Parse a form in memory: images are never written to disk, and the limit on the body bounds them."""

    spool_max_size = 2**62

    def close(self) -> None:
        """Close every file, also those of an incomplete form."""
        for file in self._files_to_close_on_error:
            file.close()


class LimitedRequest(Request):
    """A request whose body is read within limits.

    Args:
        request: as it arrived.
        limits: on the bytes of the body and the seconds between two chunks.
        deadline: for the whole body, on the event loop's clock.
        reserve: called with the bytes of each chunk; raises where all bodies together are too large.
    """

    def __init__(self, request: Request, limits: Limits, deadline: float, reserve: Callable[[int], None]) -> None:
        super().__init__(request.scope, request.receive)
        self._limits = limits
        self._deadline = deadline
        self._reserve = reserve

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the chunks of the body.

        Raises:
            HTTPException: 400, 408, 413 or 429.
        """
        limit = self._limits.request_bytes
        too_large = HTTPException(413, f"The request is larger than {limit:,} bytes. Send a smaller image.")
        declared = self.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            raise too_large
        size, chunks, clock = 0, super().stream(), asyncio.get_running_loop().time
        try:
            while True:
                async with asyncio.timeout_at(min(self._deadline, clock() + self._limits.read_timeout)):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                size += len(chunk)
                if size > limit:
                    raise too_large
                self._reserve(len(chunk))
                yield chunk
        except ClientDisconnect as error:
            raise HTTPException(400, "The request ended early. Send it again.") from error
        except TimeoutError as error:
            raise HTTPException(408, "The request did not arrive in time. Send a smaller image.") from error


async def read_query(request: LimitedRequest) -> Query:
    """Read a query from a multipart form or JSON.

    Raises:
        HTTPException: 400, 408, 413, 415, 422 or 429.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if media_type == "application/json":
            return Query.model_validate_json(await request.body())
        if media_type == "multipart/form-data":
            return Query.model_validate(await _read_form(request))
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False, include_context=False)
        first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])  # a misspelled field
        place = ".".join(map(str, first["loc"]))[:80] or "The body"
        message = " ".join(first["msg"].removeprefix("Value error, ").split())[:200]
        status = 400 if first["type"] == "json_invalid" else 422
        raise HTTPException(status, f"{place}: {message}.") from error
    raise HTTPException(415, "Send multipart/form-data with `image` and `phrases`, or application/json.")


async def _read_form(request: LimitedRequest) -> dict[str, Any]:
    """Return the fields of a multipart form as JSON would state them."""
    fields: dict[str, list[Any]] = {}
    parser = MemoryParser(request.headers, request.stream(), max_files=2, max_fields=MAX_PHRASES + 4)
    try:
        for name, value in (await parser.parse()).multi_items():
            content = await value.read() if isinstance(value, UploadFile) else value
            fields.setdefault("phrases" if name == "phrases[]" else name, []).append(content)
    except MultiPartException as error:
        raise HTTPException(400, f"The multipart form cannot be parsed ({error.message.rstrip('.')}).") from error
    except ValueError as error:  # of a codec
        raise HTTPException(400, "The multipart form has another charset than its text. Send UTF-8.") from error
    finally:
        parser.close()
    values: dict[str, Any] = {name: many[0] if len(many) == 1 else many for name, many in fields.items()}
    if isinstance(values.get("phrases"), str):
        values["phrases"] = _parse_list(values["phrases"])
    if isinstance(values.get("min_score"), str):
        values["min_score"] = _parse_number(values["min_score"])
    if re.fullmatch("[0-9]{1,9}", str(values.get("top_k"))):
        values["top_k"] = int(values["top_k"])
    return values


def _parse_list(text: str) -> Any:
    """Parse a field that looks like a list of texts; any other is one phrase."""
    if not re.fullmatch(r"\s*\[\s*[\"'].*\]\s*", text, re.DOTALL):
        return text
    try:
        return TypeAdapter(list[str]).validate_json(text)
    except ValidationError as error:
        raise HTTPException(
            422, "phrases: a list of texts that is not JSON. Send the field once per phrase."
        ) from error


def _parse_number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
