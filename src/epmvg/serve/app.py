"""The HTTP API and the page that uses it."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Collection, Sequence
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

from epmvg.core.types import Box, InputError, Prediction
from epmvg.core.version import __version__
from epmvg.data.synthetic.scenes import draw_scene
from epmvg.serve.batching import Batcher, Waiting
from epmvg.serve.contract import Fault, batch_body, faults, question_body
from epmvg.serve.engine import Ground, answer
from epmvg.serve.gate import Gate, Share
from epmvg.serve.guard import FAILED, Guard, bearer
from epmvg.serve.intake import Asked, Bound, Question, asked_of, read_question, read_questions
from epmvg.serve.limits import Limits, RefusalError
from epmvg.serve.meters import Meters
from epmvg.serve.pictures import Pictures

STATIC = Path(__file__).parent / "static"
SAMPLES = 4

log = logging.getLogger("epmvg.serve")


class Found(BaseModel):
    """Where a phrase was found."""

    phrase: str
    box: Box  # (x0, y0, x1, y1) in pixels of the upright picture
    score: float  # 0..1
    found: bool  # the score is at least the `min_score` asked for, and some word of the phrase is known
    truncated: bool  # the phrase is longer than the model reads: its end had no say
    unknown: bool  # the model knows no word of the phrase

    @classmethod
    def of(cls, one: Prediction, bound: float) -> Found:
        found = one.score >= bound and not one.unknown
        return cls(
            phrase=one.phrase, box=one.box, score=one.score, found=found, truncated=one.truncated, unknown=one.unknown
        )


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
    domain: str | None  # what the model was trained to recognise, where it is stated
    threshold: float | None  # the stored score from which a phrase counts as found, `min_score` "auto"


class Sample(BaseModel):
    """A drawn scene to try the model on, and phrases that are true of it."""

    image: str  # address, relative to the page
    phrases: list[str]


class House:
    """What the requests of one server share."""

    def __init__(self, ground: Ground, limits: Limits) -> None:
        self.limits = limits
        self.ground = ground
        self.gate = Gate(limits.queue, pace=0.1)  # the first guess is a small model's on a CPU
        self.bodies = Gate(limits.bodies)
        self.meters = Meters(lambda: self.gate.inside, lambda: self.bodies.inside)
        self._pictures = Pictures(limits, ground.image_size)
        self._readers = ThreadPoolExecutor(2, "epmvg-pictures")
        self._batcher: Batcher | None = None

    @asynccontextmanager
    async def open(self, _: FastAPI) -> AsyncIterator[None]:
        """Answer questions while the block runs; at its end those accepted are answered first."""
        work = functools.partial(answer, self.ground)
        self._batcher = Batcher(work, self.limits.batch, self.limits.together, self._note)
        try:
            yield
        finally:
            await self._batcher.close()
            self._readers.shutdown()

    def deadline(self) -> float:
        """When a request that comes now has to be answered, on the loop's clock."""
        return asyncio.get_running_loop().time() + self.limits.seconds

    async def ask(self, asked: Asked, deadline: float, body: Share | None = None) -> Answer:
        """Answer one question.

        Args:
            asked: loses its bytes once they are decoded.
            deadline: on the loop's clock.
            body: the room that those bytes take, given back then.

        Raises:
            RefusalError: 422, or 504 after the deadline.
        """
        assert self._batcher is not None
        bound = self._bound(asked.min_score)
        try:
            async with asyncio.timeout_at(deadline):
                loop = asyncio.get_running_loop()
                picture, kept = await loop.run_in_executor(self._readers, self._pictures.open, asked.image)
                asked.image = b""
                if body is not None:
                    body.release()
                self.meters.pictures.labels("yes" if kept else "no").inc()
                found = await self._batcher.ask(picture, asked.phrases)
        except TimeoutError as error:
            raise RefusalError(504, f"No answer within {self.limits.seconds:g} s: ask again later.") from error
        except InputError as error:
            raise RefusalError(422, str(error)) from error
        self.meters.phrases.inc(len(found))
        results = [Found.of(one, bound) for one in found]
        width, height = picture.size
        return Answer(width=width, height=height, results=results)

    async def ask_of_batch(self, question: Question, deadline: float) -> Answer | Fault:
        """Answer one question of a batch; whatever goes wrong with it is its own answer."""
        try:
            return await self.ask(asked_of(question, self.limits), deadline)
        except RefusalError as refusal:
            return Fault(error=refusal.sentence)
        except Exception:
            log.exception("a question of a batch failed")
            return Fault(error=FAILED)

    def _bound(self, given: Bound) -> float:
        """Return the lowest score that counts as found."""
        if given != "auto":
            return given
        if self.ground.threshold is None:
            raise RefusalError(422, "This model has no stored threshold: give `min_score` a number from 0 to 1.")
        return self.ground.threshold

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


def create_app(
    ground: Ground, limits: Limits | None = None, *, token: str | None = None, hosts: Collection[str] = ()
) -> FastAPI:
    """Build the server's application.

    Args:
        ground: a `Predictor`, or what answers like one; called in one thread.
        limits: bounds on work, memory and patience.
        token: what /v1 and /metrics ask for as a bearer token; without one they are open.
        hosts: the names, as in a Host header without the port, under which it answers; none given allow all.
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
    app.add_middleware(Guard, meters=house.meters, hosts=hosts)
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
        openapi_extra=question_body(house.limits, calibrated=house.ground.threshold is not None),
    )
    async def ground(request: Request) -> Answer:
        """Boxes are (x0, y0, x1, y1) in pixels of the picture as it is displayed (EXIF orientation applied)."""
        deadline = house.deadline()
        house.gate.require()
        with house.bodies.admit(0) as body:
            async with _arriving(deadline):
                asked = await read_question(request, house.limits, body)
            with house.gate.admit():
                return await house.ask(asked, deadline, body)

    @router.post(
        "/v1/ground/batch",
        summary="Find phrases in several pictures",
        responses=faults(400, 401, 408, 413, 415, 422, 429),
        openapi_extra=batch_body(house.limits),
    )
    async def ground_batch(request: Request) -> Answers:
        """A question that cannot be answered has an error in place of its answer; the others are not affected."""
        deadline = house.deadline()
        house.gate.require()
        with house.bodies.admit(0) as body:
            async with _arriving(deadline):
                questions = await read_questions(request, house.limits, body)
            with house.gate.admit(len(questions)):
                asked = (house.ask_of_batch(question, deadline) for question in questions)
                return Answers(answers=await asyncio.gather(*asked))

    return router


def _watching(house: House, secured: list[Any]) -> APIRouter:
    router = APIRouter(tags=["operation"])

    @router.get("/healthz", summary="Say that the server is up")
    async def health() -> Health:
        return Health(domain=house.ground.domain, threshold=house.ground.threshold)

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
