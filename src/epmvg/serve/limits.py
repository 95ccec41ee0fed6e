"""What one server takes on, and how it says no."""

from __future__ import annotations

from dataclasses import dataclass, fields

from epmvg.core.images import MAX_PIXELS
from epmvg.core.types import InputError


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on work, memory and patience.

    Raises:
        InputError: a number is not positive, pictures may be larger than this program opens, or one request's body
            may be larger than all bodies together.
    """

    queue: int = 64  # pictures at once, from when their request has arrived until it is answered
    batch: int = 64  # phrases in one pass of the model
    together: int = 8  # pictures in one pass: more gain little on a CPU, and all wait for the last
    phrases: int = 32  # asked of one picture
    letters: int = 1_000  # of one phrase
    pictures: int = 16  # in one request to the batch endpoint
    upload: int = 20_000_000  # bytes of a request's body
    bodies: int = 160_000_000  # bytes of all bodies that have arrived and are not decoded yet
    pixels: int = 50_000_000  # of a picture once decoded
    seconds: float = 30.0  # from a request's headers to its answer
    head_seconds: float = 10.0  # for a request's line and headers
    pause_seconds: float = 10.0  # between two pieces of a body
    keep_alive: float = 90.0  # for which a connection may stay idle between two requests
    connections: int = 500  # at once; half of the files that Linux lets a process open
    kept: int = 64 * 2**20  # bytes of decoded pictures kept for the next question

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise InputError(f"The limit `{field.name}` is {value}: give a number above 0.")
        if self.pixels > MAX_PIXELS:
            raise InputError(f"The limit `pixels` is {self.pixels:,}: give {MAX_PIXELS:,} or fewer.")
        if self.bodies < self.upload:
            raise InputError(f"The limit `bodies` is {self.bodies:,}: give at least `upload`, {self.upload:,}.")


class RefusalError(Exception):
    """A request that is not served: an HTTP status and one sentence for whoever sent it."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = headers or {}
