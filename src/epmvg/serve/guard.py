"""Around every answer: strict headers, a count, a last net for errors; HEAD, the Host check, and the bearer token."""

from __future__ import annotations

import hmac
import logging
import re
import time
from collections.abc import Callable, Collection

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from epmvg.serve.limits import RefusalError
from epmvg.serve.meters import Meters

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

FAILED = "The server failed; its log says why."

log = logging.getLogger("epmvg.serve")


class Guard:
    """ASGI middleware: headers on every answer, counters, and one sentence where the code fails.

    HEAD is answered as GET without its body. A Host that is not among `hosts` is refused where some are given: a page
    of another site, whose name resolves to this machine, could read the answers otherwise.
    """

    def __init__(self, app: ASGIApp, meters: Meters, hosts: Collection[str] = ()) -> None:
        self._app = app
        self._meters = meters
        self._hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, asks_head = time.perf_counter(), 0, scope["method"] == "HEAD"
        if asks_head:
            scope = {**scope, "method": "GET"}

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store" if scope["path"].startswith("/v1/") else "no-cache")
            elif asks_head:
                message = {**message, "body": b""}
            await send(message)

        try:
            if self._allows(scope):
                await self._app(scope, receive, send_guarded)
            else:
                sentence = "This server is not known by that name: ask it by its address, or start it with a token."
                await JSONResponse({"error": sentence}, 400)(scope, receive, send_guarded)
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if not status:
                answer = JSONResponse({"error": FAILED}, 500)
                await answer(scope, receive, send_guarded)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._meters.requests.labels(route, str(status)).inc()
            self._meters.seconds.labels(route).observe(time.perf_counter() - started)

    def _allows(self, scope: Scope) -> bool:
        name = re.sub(r":\d*$", "", Headers(scope=scope).get("host", "")).lower()
        return not self._hosts or name in self._hosts


def bearer(token: str) -> Callable[..., None]:
    """Make the check that a request carries a token.

    Raises:
        RefusalError: (the check) 401.
    """
    scheme = HTTPBearer(auto_error=False, description="The token the server was started with.")

    def check(given: HTTPAuthorizationCredentials | None = Depends(scheme)) -> None:  # noqa: B008 (FastAPI's way)
        if given is None or not hmac.compare_digest(given.credentials.encode(), token.encode()):
            raise RefusalError(
                401, "Send the server's token as `Authorization: Bearer ...`.", {"WWW-Authenticate": "Bearer"}
            )

    return check
