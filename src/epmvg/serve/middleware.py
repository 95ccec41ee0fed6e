"""Middleware of every response: security headers, metrics, the Host check; and the bearer token."""

from __future__ import annotations

import hmac
import logging
import re
import time
from collections.abc import Callable, Collection

from fastapi import Depends, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

logger = logging.getLogger("epmvg.serve")


class Metrics:
    """Prometheus metrics of one server.

    Args:
        images_in_progress, body_bytes: return the value of the gauge of that name.
    """

    def __init__(self, images_in_progress: Callable[[], int], body_bytes: Callable[[], int]) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("epmvg_requests", "Requests.", ["route", "status"], registry=registry)
        self.request_seconds = Histogram(
            "epmvg_request_seconds", "Duration of requests.", ["route"], buckets=SECONDS, registry=registry
        )
        self.images = Counter("epmvg_images", "Images, by whether they were cached.", ["cached"], registry=registry)
        self.phrases = Counter("epmvg_phrases", "Phrases predicted.", registry=registry)
        self.batch_size = Histogram(
            "epmvg_batch_size", "Queries per batch.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.batch_seconds = Histogram("epmvg_batch_seconds", "Time of a batch.", buckets=SECONDS, registry=registry)
        images = Gauge("epmvg_images_in_progress", "Images waiting or being predicted.", registry=registry)
        images.set_function(images_in_progress)
        Gauge("epmvg_body_bytes", "Bytes of bodies in progress.", registry=registry).set_function(body_bytes)


class ServerMiddleware:
    """Add security headers, count requests, and turn unhandled exceptions into status 500.

    Args:
        app: the application.
        metrics: counted into.
        hosts: names allowed in the Host header, without port; all if empty. Otherwise a page of another site whose name
            resolves to this machine could read the responses.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, hosts: Collection[str] = ()) -> None:
        self._app = app
        self._metrics = metrics
        self._hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def send_response(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(SECURITY_HEADERS)
                headers.setdefault("Cache-Control", "no-store" if scope["path"].startswith("/v1/") else "no-cache")
            await send(message)

        try:
            host = re.sub(r":\d*$", "", Headers(scope=scope).get("host", "")).lower()
            if not self._hosts or host in self._hosts:
                await self._app(scope, receive, send_response)
            else:
                error = "The Host header names another server. Use this server's address, or start it with a token."
                await JSONResponse({"error": error}, 400)(scope, receive, send_response)
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            if not status:
                response = JSONResponse({"error": "Internal server error. Its log has the details."}, 500)
                await response(scope, receive, send_response)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.request_seconds.labels(route).observe(time.perf_counter() - started)


def bearer_token(token: str) -> Callable[..., None]:
    """Return a dependency that rejects requests without this token: 401."""
    scheme = HTTPBearer(auto_error=False, description="The token that the server was started with.")

    def check(given: HTTPAuthorizationCredentials | None = Depends(scheme)) -> None:  # noqa: B008 (FastAPI's way)
        if given is None or not hmac.compare_digest(given.credentials.encode(), token.encode()):
            detail = "The token is missing or wrong. Send it as `Authorization: Bearer TOKEN`."
            raise HTTPException(401, detail, {"WWW-Authenticate": "Bearer"})

    return check
