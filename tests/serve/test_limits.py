"""Tests of limits and admission control."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.request import Request, urlopen

import pytest
from PIL import Image
from pydantic import ValidationError
from serving import FORM, JSON, FakePredictor, as_json, client_of, encoded, metric, post_form, serving, wait_for

from epmvg.inference.predictor import Predictor
from epmvg.serve.app import create_app
from epmvg.serve.limits import Limits


def test_too_many_images_are_a_429_with_retry_after() -> None:
    predictor = FakePredictor(released=False)
    with client_of(predictor, max_images=2) as client, ThreadPoolExecutor(2) as pool:
        accepted = [pool.submit(post_form, client, encoded(), ["it"]) for _ in range(2)]
        wait_for(lambda: metric(client, "epmvg_images_in_progress") == 2)
        rejected = post_form(client, encoded(), ["it"])
        assert rejected.status_code == 429 and int(rejected.headers["retry-after"]) >= 1
        assert rejected.json() == {"error": "The server is busy. Send the request again in 1 s."}
        predictor.release.set()
        assert [future.result().status_code for future in accepted] == [200, 200]
        assert post_form(client, encoded(), ["it"]).status_code == 200
        assert metric(client, 'epmvg_requests_total{route="/v1/ground",status="429"}') == 1


def test_slow_clients_do_not_count_as_images_in_progress() -> None:
    """Three bodies that stop after their first byte, with a limit of two images; only arrived bytes are counted."""
    head = b"POST /v1/ground HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    with serving(FakePredictor(), Limits(max_images=2)) as address, contextlib.ExitStack() as stack:
        host, port = address.removeprefix("http://").split(":")
        for _ in range(3):
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
            connection.sendall(head + b"Content-Length: 10000000\r\n\r\n-")
        wait_for(lambda: b"\nepmvg_body_bytes 3.0\n" in urlopen(f"{address}/metrics").read())
        body = json.dumps(as_json(encoded(), ["it"])).encode()
        with urlopen(Request(f"{address}/v1/ground", body, JSON)) as response:
            assert response.status == 200


def test_bodies_are_limited_together_until_they_are_answered(predictor: Predictor) -> None:
    image = encoded(kind="BMP")
    limits = {"request_bytes": 20_000, "total_request_bytes": 20_000}
    with client_of(predictor, **limits) as client:
        for _ in range(3):
            assert post_form(client, image, ["it"]).status_code == 200 and len(image) > 10_000
            assert metric(client, "epmvg_body_bytes") == 0
    fake = FakePredictor(released=False)
    with client_of(fake, **limits) as client, ThreadPoolExecutor(2) as pool:
        first = pool.submit(post_form, client, image, ["it"])
        assert fake.called.wait(30)
        assert post_form(client, image, ["it"]).status_code == 429
        fake.release.set()
        assert first.result().status_code == 200


def test_a_body_that_does_not_arrive_is_a_408() -> None:
    """Called without a server: the first chunk of the body arrives, the second never does."""
    chunks = [{"type": "http.request", "body": b"--x", "more_body": True}]
    sent: list[Any] = []

    async def receive() -> Any:
        return chunks.pop() if chunks else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    app: Any = create_app(FakePredictor(), Limits(request_timeout=0.2))  # type: ignore[arg-type]
    scope = {"type": "http", "method": "POST", "path": "/v1/ground", "query_string": b""}
    headers = [(name.encode(), value.encode()) for name, value in FORM.items()]
    asyncio.run(app(scope | {"headers": headers}, receive, send))
    assert sent[0]["status"] == 408 and b"did not arrive in time" in sent[1]["body"]


def test_requests_beyond_a_limit_are_rejected(predictor: Predictor) -> None:
    noise = io.BytesIO()
    Image.effect_noise((60, 60), 90).save(noise, "BMP")
    large = noise.getvalue() * 2
    with client_of(predictor, request_bytes=4_000, image_pixels=5_000) as client:
        assert post_form(client, encoded(), ["it"]).status_code == 200
        errors = [
            (post_form(client, large, ["it"]), 413, "larger than 4,000 bytes"),
            (client.post("/v1/ground", json=as_json(large, ["it"])), 413, "larger than 4,000 bytes"),
            (client.post("/v1/ground", content=iter([b"{"] * 5_000), headers=JSON), 413, "larger than 4,000 bytes"),
            (post_form(client, encoded(size=(100, 51)), ["it"]), 422, "100 x 51 pixels: give one of 1 to 5,000"),
            (post_form(client, encoded(), ["a"] * 33), 422, "at most 32 items"),
            (post_form(client, encoded(), ["a" * 1_001]), 422, "at most 1000 characters"),
        ]
    for response, status, words in errors:
        assert response.status_code == status and words in response.json()["error"], response.text


@pytest.mark.parametrize("wrong", [{"max_images": 0}, {"request_timeout": -1.0}, {"queue": 1}])
def test_limits_are_positive_and_known(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Limits(**wrong)
