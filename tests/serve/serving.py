"""Helpers of the server's tests: requests, a controllable predictor, and a server with real connections."""

from __future__ import annotations

import base64
import io
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fastapi.testclient import TestClient
from PIL import Image

from epmvg.core.types import Candidate, InputError, Prediction
from epmvg.serve.app import create_app
from epmvg.serve.limits import Limits
from epmvg.serve.server import listen, make_server

JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=x"}
PHRASES = ["the red square", "a dog on the left", "it"]


class FakePredictor:
    """A predictor whose calls wait until `release` is set; it records their phrases.

    A phrase "unreadable" raises InputError, "crash" RuntimeError, "unlikely" has a score of 0.4, any other 0.5.
    """

    name, image_size, threshold, domain = "runs/fake", 64, 0.5, "colored rectangles"

    def __init__(self, *, released: bool = True) -> None:
        self.release = threading.Event()
        self.called = threading.Event()
        self.calls: list[list[list[str]]] = []
        if released:
            self.release.set()

    def predict_batch(
        self,
        queries: Sequence[tuple[Image.Image, list[str]]],
        keys: Sequence[bytes],
        sizes: Sequence[tuple[int, int]],
        top_k: int = 1,
    ) -> list[list[Prediction]]:
        phrases = [each for _, each in queries]
        self.calls.append(phrases)
        self.called.set()
        assert self.release.wait(30)
        if any("unreadable" in each for each in phrases):
            raise InputError("The phrase 'unreadable' cannot be predicted.")
        if any("crash" in each for each in phrases):
            raise RuntimeError("out of memory")
        return [
            [_prediction(*size, phrase, top_k) for phrase in each] for size, each in zip(sizes, phrases, strict=True)
        ]


def _prediction(width: int, height: int, phrase: str, top_k: int) -> Prediction:
    score = 0.4 if phrase == "unlikely" else 0.5
    candidates = [Candidate((0.0, 0.0, width / k, height / k), score / k) for k in range(1, top_k + 1)]
    return Prediction(phrase, candidates[0].box, score, candidates=tuple(candidates) if top_k > 1 else ())


def client_of(predictor: Any, **options: Any) -> TestClient:
    """Return a client of an application; `options` are limits and arguments of `create_app`."""
    arguments = {name: options.pop(name) for name in ("token", "hosts") if name in options}
    return TestClient(create_app(predictor, Limits(**options), **arguments))


def encoded(color: str = "teal", size: tuple[int, int] = (80, 60), kind: str = "PNG") -> bytes:
    """Return an image file with a red rectangle."""
    image = Image.new("RGB", size, color)
    image.paste((200, 30, 30), (size[0] // 8, size[1] // 8, size[0] // 2, size[1] // 2))
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def post_form(client: TestClient, image: bytes, phrases: Sequence[str], **options: Any) -> Any:
    """Send a query as a multipart form."""
    return client.post("/v1/ground", files={"image": ("a.png", image)}, data={"phrases": list(phrases)}, **options)


def as_json(image: bytes, phrases: Sequence[str] | str, **more: Any) -> dict[str, Any]:
    """Return a query as JSON."""
    return {"image": base64.b64encode(image).decode(), "phrases": phrases, **more}


def metric(client: TestClient, name: str) -> float:
    """Return the value of a metric, 0 before it is first counted."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return float(found.group(1)) if found else 0.0


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, 30 s at most."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within 30 s")


@contextmanager
def serving(predictor: Any, limits: Limits | None = None, token: str | None = None) -> Iterator[str]:
    """Serve on a free port while the block runs; yields the address."""
    limits = limits or Limits()
    listener = listen("127.0.0.1", 0)
    server = make_server(create_app(predictor, limits, token=token), limits)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
