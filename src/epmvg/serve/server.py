"""Run a server: bind, serve until a signal, finish the requests in progress."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import socket
import sys
from pathlib import Path
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from epmvg.core.types import InputError
from epmvg.inference.predictor import Predictor
from epmvg.serve.app import create_app
from epmvg.serve.limits import Limits


def serve(run: Path, *, host: str, port: int, limits: Limits, token: str | None = None, device: str = "auto") -> None:
    """Serve a run until SIGINT or SIGTERM; requests in progress are still answered.

    Args:
        run: folder of a trained or exported run.
        host, port: address to listen on; port 0 takes a free one.
        limits: on work, memory and time.
        token: bearer token that clients have to send; None leaves the API open.
        device: where torch computes, for example "cuda"; "auto" takes a GPU where there is one.

    Raises:
        InputError: the folder is not a run, the address cannot be used, or the token is not printable ASCII.
    """
    if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token != ""):
        raise InputError("The token is not printable ASCII, or has spaces around it. Choose another.")
    with listen(host, port) as listener:
        names = {host, "localhost", "127.0.0.1", "::1"} if _is_loopback(host) and not token else set()
        hosts = {f"[{name}]" if ":" in name else name for name in names}
        app = create_app(Predictor(run, device=device), limits, token=token, hosts=hosts)
        address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        print(f"Serving {run} at {address} (API: {address}/docs). Press Ctrl-C to stop.", file=sys.stderr, flush=True)
        if token is None and not _is_loopback(host):
            print("warning: anybody who reaches this address can use it. Set EPMVG_TOKEN.", file=sys.stderr, flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after a clean shutdown
            make_server(app, limits).run(sockets=[listener])


def make_server(app: FastAPI, limits: Limits) -> uvicorn.Server:
    """Return the uvicorn server of an application; `run(sockets=[...])` serves it."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=limited_protocol(limits),
            ws="none",
            log_level="warning",
            server_header=False,
            timeout_keep_alive=math.ceil(limits.keep_alive_timeout),
            timeout_graceful_shutdown=int(limits.request_timeout) + 1,
        )
    )


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Raises:
        InputError: the port is taken or forbidden, or the host is not this machine.
    """
    if not 0 <= port < 2**16:
        raise InputError(f"--port is {port}. Give a number from 0 to 65535.")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{host} port {port} cannot be used ({reason}). Choose another --host or --port.") from error
    # asyncio sets it only for sockets made with proto=TCP; without it every response waits 40 ms for an acknowledgement
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def limited_protocol(limits: Limits) -> type[H11Protocol]:
    """Return the class of a server's connections, which closes those of slow clients and limits their number.

    `header_timeout` holds for a connection's first request, and for each further one from its first byte on;
    `keep_alive_timeout` between two requests. From its headers on a request has twice `request_timeout`: at most one
    half for the application, the other for sending the response.
    """

    class LimitedProtocol(H11Protocol):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._timer: asyncio.TimerHandle | None = None
            self._is_idle = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._abort_after(limits.header_timeout if len(self.connections) <= limits.max_connections else 0)

        def data_received(self, data: bytes) -> None:
            previous = self.cycle
            super().data_received(data)
            if self.cycle is not previous and not self.cycle.response_complete:
                self._abort_after(2 * limits.request_timeout)
            elif self._is_idle:
                self._abort_after(limits.header_timeout)
            self._is_idle = False

        def on_response_complete(self) -> None:
            completed = self.cycle
            super().on_response_complete()
            self._is_idle = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
            if self._is_idle:
                self._abort_after(limits.keep_alive_timeout)
            else:
                self._abort_after(limits.header_timeout if self.cycle is completed else 2 * limits.request_timeout)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._timer is not None:
                self._timer.cancel()

        def _abort_after(self, seconds: float) -> None:
            if self._timer is not None:
                self._timer.cancel()
            if not self.transport.is_closing():  # a response may complete after its client has closed
                self._timer = self.loop.call_later(seconds, self.transport.abort)

    return LimitedProtocol
