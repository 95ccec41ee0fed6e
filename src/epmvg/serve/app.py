"""The HTTP API and the page that uses it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response

from epmvg import __version__
from epmvg.data.scenes import draw_scene
from epmvg.serve.batching import Batcher, Gate, Waiting
from epmvg.serve.contract import Fault, batch_body, faults, question_body
from epmvg.serve.engine import Ground, Pictures, answer
from epmvg.serve.guard import Guard, bearer
from epmvg.serve.intake import Asked, Question, asked_of, read_question, read_questions
from epmvg.serve.limits import Limits, RefusalError
from epmvg.serve.meters import Meters
from epmvg.types import Box, InputError

STATIC = Path(__file__).parent / "static"
SAMPLES = 4


class Found(BaseModel):
    """Where a phrase was found."""

    phrase: str
    box: Box  # (x0, y0, x1, y1) in pixels of the upright picture
    score: float  # 0..1


class Answer(BaseModel):
    """What was found in a picture of this size, one result a phrase, in the order asked."""

    width: int
    height: int
    results: list[Found]


class Answers(BaseModel):
    """One answer or fault a question, in the order asked."""

    answers: list[Answer | Fault]


class Health(BaseModel):
    """A server that is up."""

    status: Literal["ok"] = "ok"
    version: str = __version__


class Sample(BaseModel):
    """A drawn scene to try the model on, and phrases that are true of it."""

    image: str  # address, relative to the page
    phrases: list[str]


class House:
    """What the requests of one server share."""

    def __init__(self, ground: Ground, limits: Limits) -> None:
        self.limits = limits
        self.gate = Gate(limits.queue)
        self.meters = Meters(lambda: self.gate.inside)
        self._answer = functools.partial(answer, ground)
        self._pictures = Pictures(limits)
        self._readers = ThreadPoolExecutor(2, "epmvg-pictures")
        self._batcher: Batcher | None = None

    @asynccontextmanager
    async def open(self, _: FastAPI) -> AsyncIterator[None]:
        """Answer questions while the block runs; at its end those accepted are answered first."""
        self._batcher = Batcher(self._answer, self.limits.batch, self.limits.together, self._note)
        try:
            yield
        finally:
            await self._batcher.close()
            self._readers.shutdown()

    def deadline(self) -> float:
        """When a request that comes now has to be answered, on the loop's clock."""
        return asyncio.get_running_loop().time() + self.limits.seconds

    async def ask(self, asked: Asked, deadline: float) -> Answer:
        """Answer one question.

        Raises:
            RefusalError: 422, or 504 after the deadline.
        """
        assert self._batcher is not None
        try:
            async with asyncio.timeout_at(deadline):
                loop = asyncio.get_running_loop()
                picture, kept = await loop.run_in_executor(self._readers, self._pictures.open, asked.image)
                self.meters.pictures.labels("yes" if kept else "no").inc()
                found = await self._batcher.ask(picture, asked.phrases)
        except TimeoutError as error:
            raise RefusalError(504, f"No answer within {self.limits.seconds:g} s: ask again later.") from error
        except InputError as error:
            raise RefusalError(422, str(error)) from error
        self.meters.phrases.inc(len(found))
        results = [Found(phrase=one.phrase, box=one.box, score=one.score) for one in found]
        return Answer(width=picture.image.width, height=picture.image.height, results=results)

    async def ask_of_batch(self, question: Question, deadline: float) -> Answer | Fault:
        """Answer one question of a batch; what is wrong with it is its own answer."""
        try:
            return await self.ask(asked_of(question, self.limits), deadline)
        except RefusalError as refusal:
            return Fault(error=refusal.sentence)

    def _note(self, batch: Sequence[Waiting], seconds: float) -> None:
        self.gate.note(len(batch), seconds)
        self.meters.batches.observe(len(batch))
        self.meters.model_seconds.observe(seconds)


@asynccontextmanager
async def _arriving(deadline: float) -> AsyncIterator[None]:
    """Refuse a body that takes too long to arrive: 408."""
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError as error:
        raise RefusalError(408, "The request took too long to arrive: send a smaller picture.") from error


def create_app(ground: Ground, limits: Limits | None = None, *, token: str | None = None) -> FastAPI:
    """Build the server's application.

    Args:
        ground: a `Predictor`, or what answers like one; called in one thread.
        limits: bounds on work, memory and patience.
        token: what /v1 and /metrics ask for as a bearer token; without one they are open.
    """
    house = House(ground, limits or Limits())
    app = FastAPI(
        title="EpmVG",
        summary="An image and a phrase go in, the box of that thing comes out.",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=house.open,
    )
    app.add_middleware(Guard, meters=house.meters)
    app.add_exception_handler(RefusalError, _refused)
    app.add_exception_handler(HTTPException, _lost)
    secured = [Depends(bearer(token))] if token else []
    app.include_router(_grounding(house), dependencies=secured)
    app.include_router(_watching(house, secured))
    app.include_router(_pages())
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RefusalError)
    return JSONResponse({"error": error.sentence}, error.status, error.headers)


def _lost(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": f"{error.detail}: see /docs."}, error.status_code, error.headers)


def _grounding(house: House) -> APIRouter:
    router = APIRouter(tags=["grounding"])

    @router.post(
        "/v1/ground",
        summary="Find phrases in a picture",
        responses=faults(400, 401, 408, 413, 415, 422, 429, 504),
        openapi_extra=question_body(house.limits),
    )
    async def ground(request: Request) -> Answer:
        """Boxes are (x0, y0, x1, y1) in pixels of the picture as it is displayed (EXIF orientation applied)."""
        deadline = house.deadline()
        with house.gate.admit():
            async with _arriving(deadline):
                asked = await read_question(request, house.limits)
            return await house.ask(asked, deadline)

    @router.post(
        "/v1/ground/batch",
        summary="Find phrases in several pictures",
        responses=faults(400, 401, 408, 413, 415, 422, 429),
        openapi_extra=batch_body(house.limits),
    )
    async def ground_batch(request: Request) -> Answers:
        """A question that cannot be answered has an error in place of its answer; the others are not affected."""
        deadline = house.deadline()
        with house.gate.admit():
            async with _arriving(deadline):
                questions = await read_questions(request, house.limits)
            with house.gate.admit(len(questions) - 1):
                asked = (house.ask_of_batch(question, deadline) for question in questions)
                return Answers(answers=await asyncio.gather(*asked))

    return router


def _watching(house: House, secured: list[Any]) -> APIRouter:
    router = APIRouter(tags=["operation"])

    @router.get("/healthz", summary="Say that the server is up")
    async def health() -> Health:
        return Health()

    @router.get(
        "/metrics",
        summary="Counters for Prometheus",
        dependencies=secured,
        response_class=Response,
        responses=faults(401) | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        return Response(house.meters.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _pages() -> APIRouter:
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    @router.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(STATIC / "docs.html")

    @router.get("/samples", tags=["page"], summary="List drawn scenes to try")
    def samples() -> list[Sample]:
        return [Sample(image=f"samples/{number}.jpg", phrases=sample(number)[1]) for number in range(SAMPLES)]

    @router.get("/samples/{number}.jpg", include_in_schema=False)
    def sample_image(number: str) -> Response:
        if number not in map(str, range(SAMPLES)):
            raise RefusalError(404, f"There is no such sample: they are 0 to {SAMPLES - 1}.")
        return Response(sample(int(number))[0], media_type="image/jpeg")

    return router


def sample(number: int) -> tuple[bytes, list[str]]:
    """Draw a scene, once -> its JPEG and the phrases that are true of it."""
    with _DRAWING:  # a crowd that asks for it first would draw it as often
        return _drawn(number)


_DRAWING = Lock()


@functools.cache
def _drawn(number: int) -> tuple[bytes, list[str]]:
    scene = draw_scene("sample", number, side=640)
    out = BytesIO()
    scene.image.save(out, "JPEG", quality=90)
    return out.getvalue(), [phrase.text for phrase in scene.phrases]
