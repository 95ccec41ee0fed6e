"""Dynamic batching: while the model computes one batch, the next one forms from the queries that wait."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from epmvg.core.types import Prediction
from epmvg.inference.predictor import Predictor
from epmvg.serve.images import DecodedImage
from epmvg.serve.limits import Limits


@dataclass(eq=False, slots=True)
class Job:
    """A query whose predictions are awaited."""

    image: DecodedImage
    phrases: list[str]
    top_k: int
    result: asyncio.Future[list[Prediction]]


class Batcher:
    """Predict waiting queries together, in one thread.

    Args:
        predictor: called in that thread.
        limits: `batch_images` and `batch_phrases` of one call; a query with more phrases is predicted alone.
        on_batch: called with (queries, seconds) after each call.
    """

    def __init__(self, predictor: Predictor, limits: Limits, on_batch: Callable[[int, float], None]) -> None:
        self._predictor = predictor
        self._limits = limits
        self._on_batch = on_batch
        self._jobs: deque[Job] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._thread = ThreadPoolExecutor(1, "epmvg-model")
        self._task = asyncio.create_task(self._run())

    async def predict(self, image: DecodedImage, phrases: list[str], top_k: int = 1) -> list[Prediction]:
        """Return one prediction per phrase; a cancelled query is dropped, unless it is being computed."""
        job = Job(image, phrases, top_k, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self._wake.set()
        try:
            return await job.result
        finally:
            if job in self._jobs:
                self._jobs.remove(job)

    async def close(self) -> None:
        """Predict what waits, then stop."""
        self._closing = True
        self._wake.set()
        await self._task
        self._thread.shutdown()

    async def _run(self) -> None:
        while self._jobs or not self._closing:
            if not self._jobs:
                self._wake.clear()
                await self._wake.wait()
                continue
            jobs, started = self._next_batch(), time.perf_counter()
            run = asyncio.get_running_loop().run_in_executor
            results = await run(self._thread, predict_jobs, self._predictor, jobs)
            self._on_batch(len(jobs), time.perf_counter() - started)
            for job, result in zip(jobs, results, strict=True):
                if job.result.done():  # cancelled meanwhile
                    continue
                if isinstance(result, Exception):
                    job.result.set_exception(result)
                else:
                    job.result.set_result(result)

    def _next_batch(self) -> list[Job]:
        jobs: list[Job] = []
        images: set[bytes] = set()
        phrases = 0
        while self._jobs:
            images.add(self._jobs[0].image.digest)
            phrases += len(self._jobs[0].phrases)
            if jobs and (phrases > self._limits.batch_phrases or len(images) > self._limits.batch_images):
                break
            jobs.append(self._jobs.popleft())
        return jobs


def predict_jobs(predictor: Predictor, jobs: Sequence[Job]) -> list[list[Prediction] | Exception]:
    """Predict queries in one call; where that fails one by one, so that each gets its own error."""
    try:
        queries = [(job.image.pixels, job.phrases) for job in jobs]
        digests, sizes = [job.image.digest for job in jobs], [job.image.size for job in jobs]
        results = predictor.predict_batch(queries, digests, sizes, top_k=max(job.top_k for job in jobs))
        return [_limit(predictions, job.top_k) for job, predictions in zip(jobs, results, strict=True)]
    except Exception as error:
        return [error] if len(jobs) == 1 else [predict_jobs(predictor, [job])[0] for job in jobs]


def _limit(predictions: list[Prediction], top_k: int) -> list[Prediction]:
    """Drop candidates that another query of the batch requested."""
    return [replace(one, candidates=one.candidates[:top_k] if top_k > 1 else ()) for one in predictions]
