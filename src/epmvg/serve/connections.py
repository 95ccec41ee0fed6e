"""What uvicorn leaves open: connections whose client does not get on are cut, and there are only so many."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from epmvg.serve.limits import Limits


def bounded(limits: Limits) -> type[H11Protocol]:
    """Make the protocol of a server's connections.

    A client has `limits.head_seconds` for its first request's head, and for each further one from its first byte on;
    between two requests a connection may be idle for `limits.keep_alive` seconds. From a head on it has twice
    `limits.seconds`: the application spends one half at most, the other is for taking the answer.
    Connections beyond `limits.connections` are closed at once, while there are files left to open.
    """

    class Bounded(H11Protocol):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._patience: asyncio.TimerHandle | None = None
            self._idle = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.abort()
            else:
                self._give(limits.head_seconds)

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before and not self.cycle.response_complete:
                self._give(2 * limits.seconds)
            elif self._idle:
                self._give(limits.head_seconds)
            self._idle = False

        def on_response_complete(self) -> None:
            answered = self.cycle
            super().on_response_complete()
            self._idle = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
            if self._idle:
                self._give(limits.keep_alive)
            else:
                self._give(limits.head_seconds if self.cycle is answered else 2 * limits.seconds)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._patience is not None:
                self._patience.cancel()

        def _give(self, seconds: float) -> None:
            if self._patience is not None:
                self._patience.cancel()
            if not self.transport.is_closing():  # an answer may be ready after its client has gone
                self._patience = self.loop.call_later(seconds, self.transport.abort)

    return Bounded
