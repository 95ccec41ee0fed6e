"""A server in a thread of the test's own process, set up as `epmvg serve` does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from epmvg.serve.app import create_app
from epmvg.serve.engine import Ground
from epmvg.serve.limits import Limits
from epmvg.serve.server import configured, listen


@contextmanager
def serving(ground: Ground, limits: Limits | None = None, *, token: str | None = None) -> Iterator[str]:
    """Answer while the block runs -> the server's address."""
    limits = limits or Limits()
    door = listen("127.0.0.1", 0)
    server = uvicorn.Server(configured(create_app(ground, limits, token=token), limits))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{door.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        door.close()
