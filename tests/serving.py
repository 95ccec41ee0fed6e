"""A server on a free port of this machine, for tests that need real connections."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from epmvg.serve.app import create_app
from epmvg.serve.limits import Limits
from epmvg.serve.server import listen, server_of


@contextmanager
def serving(ground: Any, limits: Limits | None = None, token: str | None = None) -> Iterator[str]:
    """Serve while the block runs; yields the address."""
    limits = limits or Limits()
    door = listen("127.0.0.1", 0)
    server = server_of(create_app(ground, limits, token=token), limits)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{door.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        door.close()
