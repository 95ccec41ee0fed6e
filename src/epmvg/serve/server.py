"""A server's life: bind, answer until told to stop, finish what was accepted."""

from __future__ import annotations

import contextlib
import ipaddress
import math
import socket
import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from epmvg.core.types import InputError
from epmvg.inference.predictor import Predictor
from epmvg.serve.app import create_app
from epmvg.serve.connections import bounded
from epmvg.serve.limits import Limits


def serve(
    run: Path,
    *,
    host: str,
    port: int,
    limits: Limits,
    token: str | None = None,
    device: str = "auto",
) -> None:
    """Serve a run until SIGINT or SIGTERM; requests accepted before are answered first.

    Args:
        run: a folder that training wrote.
        host, port: where to listen; port 0 takes a free one.
        limits: bounds on work, memory and patience.
        token: what clients have to show; None lets everybody in.
        device: where the model computes, for example "cuda"; "auto" takes a GPU where there is one.

    Raises:
        InputError: the folder is no run, the address cannot be listened on, or the token is unusable.
    """
    if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token != ""):
        raise InputError("The token must be printable ASCII without spaces around it: choose another.")
    with listen(host, port) as door:
        names = {host, "localhost", "127.0.0.1", "::1"} if _is_loopback(host) and not token else set()
        hosts = {f"[{name}]" if ":" in name else name for name in names}
        app = create_app(Predictor(run, device=device), limits, token=token, hosts=hosts)
        address = f"http://{f'[{host}]' if ':' in host else host}:{door.getsockname()[1]}"
        print(f"Serving {run} at {address} (API: {address}/docs). Ctrl-C stops.", file=sys.stderr, flush=True)
        if token is None and not _is_loopback(host):
            print("Whoever reaches this address can ask: a token (EPMVG_TOKEN) closes it.", file=sys.stderr, flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it once more when all is done
            server_of(app, limits).run(sockets=[door])


def server_of(app: FastAPI, limits: Limits) -> uvicorn.Server:
    """Put an application behind HTTP; `run(sockets=[...])` serves it."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=bounded(limits),
            ws="none",
            log_level="warning",
            server_header=False,
            timeout_keep_alive=math.ceil(limits.keep_alive),
            timeout_graceful_shutdown=int(limits.seconds) + 1,
        )
    )


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Raises:
        InputError: the port is taken or forbidden, or the host is not this machine.
    """
    try:
        if not 0 <= port < 2**16:  # the socket would leak
            raise OverflowError("a port is 0 to 65535")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        door = socket.create_server((host, port), family=family, backlog=256)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{host} port {port} cannot be listened on ({reason}): choose another --host or --port."
        ) from error
    # asyncio does it for sockets made with proto=TCP only; without it every answer waits 40 ms for an acknowledgement.
    door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it
    return door


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
