"""Limits of a server on work, memory and time, and admission of requests within them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt
from starlette.exceptions import HTTPException


class Limits(BaseModel):
    """Limits of a server; sizes in bytes, times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_images: PositiveInt = 64  # in progress, from when their request has arrived until it is answered
    batch_images: PositiveInt = 8  # in one forward pass: more gain little on a CPU, and all wait for the last
    batch_phrases: PositiveInt = 64  # in one forward pass
    image_pixels: PositiveInt = 50_000_000  # width x height of an image
    request_bytes: PositiveInt = 20_000_000  # of one body
    total_request_bytes: PositiveInt = 160_000_000  # of all bodies that are arriving or in progress
    request_timeout: PositiveFloat = 30.0  # from a request's headers to its response
    header_timeout: PositiveFloat = 10.0  # for a request's headers to arrive
    read_timeout: PositiveFloat = 10.0  # between two chunks of a body
    keep_alive_timeout: PositiveFloat = 90.0  # of a connection between two requests
    max_connections: PositiveInt = 500  # half of the files that Linux lets a process open
    cache_bytes: PositiveInt = 64 * 2**20  # of decoded images, kept for further queries


class Admission:
    """Count what is in progress, images or bytes, and reject requests beyond a limit.

    Args:
        limit: how much may be in progress at once.
        seconds: that one unit takes, the first estimate of a running mean from which Retry-After is computed.
    """

    def __init__(self, limit: int, seconds: float = 0.0) -> None:
        self.limit = limit
        self.in_progress = 0
        self._seconds = seconds

    def check(self, amount: int = 1) -> None:
        """Check that an amount can be admitted now.

        Raises:
            HTTPException: 429 with Retry-After.
        """
        if self.in_progress + amount > self.limit:
            wait = min(60, max(1, math.ceil(self.in_progress * self._seconds)))
            detail = f"The server is busy. Send the request again in {wait} s."
            raise HTTPException(429, detail, {"Retry-After": str(wait)})

    @contextmanager
    def reserve(self, amount: int = 0) -> Iterator[Callable[[int], None]]:
        """Admit an amount until the block ends; the function yielded admits more.

        Raises:
            HTTPException: as `check`.
        """
        reserved = 0

        def add(more: int) -> None:
            nonlocal reserved
            self.check(more)
            self.in_progress += more
            reserved += more

        try:
            add(amount)
            yield add
        finally:
            self.in_progress -= reserved

    def observe(self, amount: int, seconds: float) -> None:
        """Update the running mean of the seconds that one unit takes."""
        self._seconds += 0.2 * (seconds / amount - self._seconds)
