"""Bounds on what is inside a server at once: bytes of bodies, and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from epmvg.serve.limits import RefusalError


class Gate:
    """Count what is inside, pictures or bytes, and refuse what finds no room.

    Args:
        room: how much may be inside at once.
        pace: seconds that one stays, a first guess of the running mean.
    """

    def __init__(self, room: int, pace: float = 0.0) -> None:
        self.room = room
        self.inside = 0
        self.pace = pace

    def require(self, amount: int = 1) -> None:
        """Check that there is room.

        Raises:
            RefusalError: 429 with Retry-After, there is none.
        """
        if self.inside + amount > self.room:
            wait = min(60, max(1, math.ceil(self.inside * self.pace)))
            sentence = f"The server is busy: ask again in {wait} s."
            raise RefusalError(429, sentence, {"Retry-After": str(wait)})

    @contextmanager
    def admit(self, amount: int = 1) -> Iterator[Share]:
        """Hold room while the block runs, which may take more of it or give it back earlier.

        Raises:
            RefusalError: as `require` does.
        """
        share = Share(self)
        share.grow(amount)
        try:
            yield share
        finally:
            share.release()

    def note(self, pictures: int, seconds: float) -> None:
        """Learn from a batch how long a picture takes."""
        self.pace += 0.2 * (seconds / pictures - self.pace)


class Share:
    """What one request holds of a gate's room."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._held = 0

    def grow(self, amount: int) -> None:
        """Take more room.

        Raises:
            RefusalError: 429, there is none.
        """
        self._gate.require(amount)
        self._gate.inside += amount
        self._held += amount

    def release(self) -> None:
        """Give back all that is held."""
        self._gate.inside -= self._held
        self._held = 0
