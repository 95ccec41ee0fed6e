"""The HTTP API and the web page of a model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from fastapi import Depends, FastAPI, Request
from fastapi.staticfiles import StaticFiles
from prometheus_client import generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response

from epmvg.core.types import InputError
from epmvg.core.version import __version__
from epmvg.inference.predictor import Predictor
from epmvg.serve.batching import Batcher
from epmvg.serve.body import LimitedRequest, read_query
from epmvg.serve.images import ImageReader
from epmvg.serve.limits import Admission, Limits
from epmvg.serve.middleware import Metrics, ServerMiddleware, bearer_token
from epmvg.serve.schemas import GroundResponse, Health, MinScore, Query, error_responses, query_body

STATIC = Path(__file__).parent / "static"


class GroundingService:
    """What the requests of one server share: admission, decoded images, batches and metrics."""

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self.predictor = predictor
        self.limits = limits
        self.images = Admission(limits.max_images, seconds=0.1)  # of a small model on a CPU, until it is measured
        self.body_bytes = Admission(limits.total_request_bytes)
        self.metrics = Metrics(lambda: self.images.in_progress, lambda: self.body_bytes.in_progress)
        self._reader = ImageReader(limits, predictor.image_size)
        self._batcher: Batcher  # needs a running event loop

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Run the batcher; at the end what waits is still predicted."""
        self._batcher = Batcher(self.predictor, self.limits, self._observe)
        try:
            yield
        finally:
            await self._batcher.close()
            self._reader.close()

    async def ground(self, request: Request) -> GroundResponse:
        """Read a request and find its phrases in its image.

        Raises:
            HTTPException: 400, 408, 413, 415, 422, 429, or 504 after `limits.request_timeout`.
        """
        deadline = asyncio.get_running_loop().time() + self.limits.request_timeout
        self.images.check()
        with self.body_bytes.reserve() as reserve:
            query = await read_query(LimitedRequest(request, self.limits, deadline, reserve))
            with self.images.reserve(1):
                try:
                    async with asyncio.timeout_at(deadline):
                        return await self._predict(query)
                except TimeoutError as error:
                    detail = f"The request took longer than {self.limits.request_timeout:g} s. Send it again later."
                    raise HTTPException(504, detail) from error
                except InputError as error:
                    raise HTTPException(422, str(error)) from error

    async def _predict(self, query: Query) -> GroundResponse:
        threshold = self._threshold(query.min_score)
        image, is_cached = await self._reader.read(query.image)
        self.metrics.images.labels("yes" if is_cached else "no").inc()
        predictions = await self._batcher.predict(image, query.phrases, query.top_k)
        self.metrics.phrases.inc(len(predictions))
        results = [replace(each, found=each.found and each.score >= threshold) for each in predictions]
        return GroundResponse(width=image.size[0], height=image.size[1], results=results)

    def _threshold(self, min_score: MinScore) -> float:
        if min_score != "auto":
            return min_score
        if self.predictor.threshold is None:
            raise HTTPException(422, "This model has no stored threshold. Give `min_score` a number from 0 to 1.")
        return self.predictor.threshold

    def _observe(self, queries: int, seconds: float) -> None:
        self.images.observe(queries, seconds)
        self.metrics.batch_size.observe(queries)
        self.metrics.batch_seconds.observe(seconds)


def create_app(
    predictor: Predictor, limits: Limits | None = None, *, token: str | None = None, hosts: Collection[str] = ()
) -> FastAPI:
    """Build the application of a server.

    Args:
        predictor: the model; called in one thread.
        limits: on work, memory and time.
        token: bearer token that /v1 and /metrics require; without one they are open.
        hosts: names allowed in the Host header, without port; all if empty.
    """
    service = GroundingService(predictor, limits or Limits())
    app = FastAPI(
        title="EpmVG",
        summary="Visual grounding: find phrases in images.",
        version=__version__,
        docs_url=None,  # FastAPI's pages load scripts from another host
        redoc_url=None,
        lifespan=service.lifespan,
    )
    app.add_middleware(ServerMiddleware, metrics=service.metrics, hosts=hosts)
    app.add_exception_handler(HTTPException, _error_response)
    _add_routes(app, service, token)
    for path, file in {"/": "index.html", "/docs": "docs.html"}.items():
        app.add_route(path, partial(_page, STATIC / file))
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


async def _page(file: Path, _: Request) -> FileResponse:
    return FileResponse(file)


def _error_response(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _add_routes(app: FastAPI, service: GroundingService, token: str | None) -> None:
    secured = [Depends(bearer_token(token))] if token else []

    @app.post(
        "/v1/ground",
        summary="Find phrases in an image",
        dependencies=secured,
        responses=error_responses(400, 401, 408, 413, 415, 422, 429, 504),
        openapi_extra=query_body(),
    )
    async def ground(request: Request) -> GroundResponse:
        """Boxes are (x0, y0, x1, y1) in pixels of the image as it is displayed (EXIF orientation applied)."""
        return await service.ground(request)

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", summary="Report that the server is running")
    async def health() -> Health:
        model = Path(service.predictor.name).absolute().name  # "mine" of runs/mine, and of the folder itself as "."
        return Health(model=model, domain=service.predictor.domain, threshold=service.predictor.threshold)

    @app.get(
        "/metrics",
        summary="Prometheus metrics",
        dependencies=secured,
        response_class=Response,
        responses=error_responses(401) | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        return Response(
            generate_latest(service.metrics.registry), media_type="text/plain; version=0.0.4; charset=utf-8"
        )
