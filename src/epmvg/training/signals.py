"""Signals that end a training after the current step."""

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

_REPEATED = 2.0  # seconds within which a launcher passes on what its processes have received from the terminal


class TrainingStopped(KeyboardInterrupt):
    """A signal ended a training, whose checkpoint is saved.

    Attributes:
        step, steps: The saved step and the number of steps of the whole training.
        status: Exit status of the process, 128 and the signal's number.
    """

    def __init__(self, number: int, step: int, steps: int) -> None:
        super().__init__(f"stopped at step {step} of {steps}")
        self.step, self.steps = step, steps
        self.status = 128 + number


@dataclass(slots=True)
class StopRequest:
    """The first signal received, or None."""

    signal: int | None = None
    time: float = 0.0  # monotonic


@contextmanager
def handle_signals(request: StopRequest, world_size: int) -> Iterator[None]:
    """Record the first signal in `request`; a second one has its usual effect at once.

    Handlers of the caller's own stay as they are; outside the main thread no handler can be set.
    """
    previous: dict[int, Any] = {}

    def handler(number: int, _: FrameType | None) -> None:
        if request.signal is None:
            request.signal, request.time = number, time.monotonic()
        elif world_size == 1 or time.monotonic() - request.time > _REPEATED:
            _set_handlers(previous)
            signal.raise_signal(number)

    if threading.current_thread() is threading.main_thread():
        default = (signal.SIG_DFL, signal.default_int_handler)
        previous = {number: signal.getsignal(number) for number in SIGNALS if signal.getsignal(number) in default}
    _set_handlers(dict.fromkeys(previous, handler))
    try:
        yield
    finally:
        _set_handlers(previous)


def _set_handlers(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
