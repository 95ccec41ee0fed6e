"""A connection that hurries its client: uvicorn alone waits for a request's head without end.

What a client may hold is bounded on both sides of a request: the application bounds a body and its answer
(`Limits.seconds`), this bounds everything between two of them.
"""

from __future__ import annotations

import asyncio
from typing import cast

from uvicorn.protocols.http.h11_impl import H11Protocol


def prompt(seconds: float) -> type[H11Protocol]:
    """Make the connection whose client has some seconds to bring a request's head, at first and after each answer.

    They run from the start, not from the last byte: a byte now and then buys no time. What is still to come of a body
    that was answered already, one too large for example, falls into the same seconds.
    """

    class Prompt(H11Protocol):
        late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            self._forget()
            super().on_response_complete()  # may begin with a request that waits already
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def _watch(self) -> None:
            cycle = cast("object | None", self.cycle)  # None before the first request, whatever uvicorn says
            if cycle is not None and not self.cycle.response_complete:
                self._forget()
            elif self.late is None and not self.transport.is_closing():
                self.late = self.loop.call_later(seconds, self.transport.abort)

        def _forget(self) -> None:
            if self.late is not None:
                self.late.cancel()
                self.late = None

    return Prompt
