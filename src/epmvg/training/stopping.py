"""Signals that end a training: the step is finished and the state saved before the process ends."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))

_REPEATED = 2.0  # seconds within which a launcher passes on what a terminal has sent to its processes already


class Stopped(KeyboardInterrupt):
    """A signal ended a training, whose state is saved.

    Attributes:
        step, steps: the step that was saved, and those of the whole training.
        status: what the process ends with, 128 and the signal's number.
    """

    def __init__(self, number: int, step: int, steps: int) -> None:
        super().__init__(f"stopped at step {step} of {steps}")
        self.step, self.steps = step, steps
        self.status = 128 + number

    def __reduce__(self) -> tuple[type[Stopped], tuple[int, int, int]]:
        return Stopped, (self.status - 128, self.step, self.steps)


@dataclass(slots=True)
class StopRequest:
    """The first signal that arrived, or None."""

    number: int | None = None
    at: float = 0.0  # on the monotonic clock


@contextmanager
def heeding(request: StopRequest, processes: int) -> Iterator[None]:
    """Note the first signal in `request`; a second one does what it would have done without this, at once.

    Handlers of the caller's own stay as they are; outside the main thread nothing can be noted.
    """
    before: dict[int, Any] = {}

    def receive(number: int, _: FrameType | None) -> None:
        if request.number is None:
            request.number, request.at = number, time.monotonic()
        elif processes == 1 or time.monotonic() - request.at > _REPEATED:
            _set(before)
            signal.raise_signal(number)

    if threading.current_thread() is threading.main_thread():
        default = (signal.SIG_DFL, signal.default_int_handler)
        before = {number: signal.getsignal(number) for number in SIGNALS if signal.getsignal(number) in default}
    _set(dict.fromkeys(before, receive))
    try:
        yield
    finally:
        _set(before)


def _set(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
