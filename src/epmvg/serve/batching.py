"""Questions of many requests answered together.

While the model looks at one batch the next one gathers by itself, so nobody waits for a timer.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from epmvg.core.types import Prediction
from epmvg.serve.pictures import Picture

Outcome = list[Prediction] | Exception
Answer = Callable[[Sequence["Waiting"]], Sequence[Outcome]]


@dataclass(eq=False, slots=True)
class Waiting:
    """A question whose answer somebody awaits."""

    picture: Picture
    phrases: list[str]
    answer: asyncio.Future[list[Prediction]]


class Batcher:
    """Gather waiting questions and answer them together, in one thread.

    Args:
        answer: called in that thread with some questions; returns as many outcomes.
        phrases: in one call; a question with more goes alone.
        pictures: in one call.
        note: called with (questions, seconds) after each call.
    """

    def __init__(
        self, answer: Answer, phrases: int, pictures: int, note: Callable[[Sequence[Waiting], float], None]
    ) -> None:
        self._answer = answer
        self._phrases = phrases
        self._pictures = pictures
        self._note = note
        self._waiting: deque[Waiting] = deque()
        self._news = asyncio.Event()
        self._closing = False
        self._thread = ThreadPoolExecutor(1, "epmvg-model")
        self._task = asyncio.create_task(self._work())

    async def ask(self, picture: Picture, phrases: list[str]) -> list[Prediction]:
        """Wait for the answer; a caller who gives up takes the question along, unless it is being answered."""
        waiting = Waiting(picture, phrases, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._news.set()
        try:
            return await waiting.answer
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    async def close(self) -> None:
        """Answer what was accepted, then stop."""
        self._closing = True
        self._news.set()
        await self._task
        self._thread.shutdown()

    async def _work(self) -> None:
        while True:
            if not self._waiting:
                if self._closing:
                    return
                self._news.clear()
                await self._news.wait()
                continue
            batch = self._gather()
            started = time.perf_counter()
            try:
                outcomes = await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, batch)
            except Exception as error:
                outcomes = [error] * len(batch)
            self._note(batch, time.perf_counter() - started)
            for waiting, outcome in zip(batch, outcomes, strict=True):
                if waiting.answer.done():  # its caller gave up
                    continue
                if isinstance(outcome, Exception):
                    waiting.answer.set_exception(outcome)
                else:
                    waiting.answer.set_result(outcome)

    def _gather(self) -> list[Waiting]:
        """Take from the front of the line what one call may hold."""
        batch: list[Waiting] = []
        pictures: set[bytes] = set()
        phrases = 0
        while self._waiting:
            first = self._waiting[0]
            pictures.add(first.picture.digest)
            phrases += len(first.phrases)
            if batch and (phrases > self._phrases or len(pictures) > self._pictures):
                break
            batch.append(self._waiting.popleft())
        return batch
