"""Fuzzing the server: no input causes a 5xx or a crash, and every error is one sentence.

`-m slow` sends thousands; the default is a sample of the same.
"""

from __future__ import annotations

import base64
import gc
import io
import json
import re
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from serving import FORM, JSON, FakePredictor, serving

from epmvg.inference.predictor import Predictor
from epmvg.models.factory import create_model
from epmvg.serve.app import create_app
from epmvg.serve.limits import Limits

REJECTED = {400, 401, 404, 405, 408, 413, 415, 422}
HOW_MANY = pytest.mark.parametrize("examples", [60, pytest.param(3_000, marks=pytest.mark.slow)])

Fuzz = Callable[..., None]


def fuzz(examples: int, check: Fuzz, **strategies: st.SearchStrategy[Any]) -> None:
    """Call a check with this many generated arguments."""
    quiet = settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    quiet(given(**strategies)(check))()


def encoded(kind: str, size: tuple[int, int] = (24, 16), **options: Any) -> bytes:
    image = Image.new("RGB", size, "teal")
    image.paste((200, 30, 30), (2, 2, 12, 9))
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


VALID_IMAGES = {kind: encoded(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF", "TIFF")}
VALID_BASE64 = base64.b64encode(VALID_IMAGES["PNG"]).decode()


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(create_model("tiny-resnet").eval())


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[TestClient]:
    with TestClient(create_app(predictor)) as opened:
        yield opened


def assert_valid(response: Any) -> None:
    """Check that a request was served, or rejected with one sentence."""
    assert response.status_code in {200} | REJECTED, f"{response.status_code} {response.text}"
    if response.status_code != 200:
        assert "\n" not in response.json()["error"] and response.json()["error"]


def post(client: TestClient, image: bytes) -> Any:
    return client.post("/v1/ground", files={"image": ("a", image)}, data={"phrases": ["it"]})


# ---- bodies ----


@HOW_MANY
def test_damaged_images(client: TestClient, examples: int) -> None:
    def check(kind: str, position: int, junk: bytes, cut: bool) -> None:
        image = VALID_IMAGES[kind]
        assert_valid(post(client, image[:position] + junk + (b"" if cut else image[position + len(junk) :])))

    kinds, junk = st.sampled_from(sorted(VALID_IMAGES)), st.binary(max_size=12)
    fuzz(examples, check, kind=kinds, position=st.integers(0, 400), junk=junk, cut=st.booleans())


@HOW_MANY
def test_phrases_of_any_characters(client: TestClient, examples: int) -> None:
    def check(phrases: list[str]) -> None:
        response = client.post(
            "/v1/ground", content=json.dumps({"image": VALID_BASE64, "phrases": phrases}), headers=JSON
        )
        assert_valid(response)
        if response.status_code == 200:
            assert [each["phrase"] for each in response.json()["results"]] == phrases

    odd = st.sampled_from(["\ud800", "\x00", "<img src=x onerror=alert(1)>", "\u202e", "e" + "\u0301" * 200])
    fuzz(examples, check, phrases=st.lists(st.text(max_size=30) | odd, min_size=1, max_size=3))


# Invalid names, parameters and values, in any order and number.
LINES = [
    b'Content-Disposition: form-data; name="phrases"',
    b'Content-Disposition: form-data; name="image"; filename="a"',
    b'Content-Disposition: form-data; name="image"; filename="../../etc/passwd\x00"',
    b"Content-Disposition: form-data; name*=utf-8''phrases",
    b'Content-Disposition: form-data; name="' + b"a" * 3_000 + b'"',
    b'Content-Disposition: form-data; name="phrases',
    b"Content-Disposition: attachment",
    b"Content-Disposition:",
    b"Content-Disposition: form-data; name=\xff\xfe",
    b"Content-Type: text/plain; charset=utf-16",
    b"Content-Type: text/plain; charset=base64",
    b"Content-Transfer-Encoding: base64",
    b"X: " + b"y" * 10_000,
    b": nothing",
    b"no colon",
    b" folded",
    b"\x00: \x00",
]
PIECES = st.one_of(
    st.sampled_from(
        [*LINES, b"--x", b"--x--", b"--y", b"", b"it", b"+2AA-", VALID_IMAGES["PNG"], b"\r", b"--x\r\n" * 50]
    ),
    st.binary(max_size=20),
)
KINDS = st.sampled_from(
    [
        "multipart/form-data; boundary=x",
        "multipart/form-data; boundary=x; charset=utf-7",
        "multipart/form-data; boundary=x; charset=base64",
        'multipart/form-data; boundary="x',
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "x" * 5_000,
        "multipart/form-data; boundary=\xff",
        "multipart/form-data",
        "multipart/mixed; boundary=x",
        "MULTIPART/FORM-DATA; BOUNDARY=x",
    ]
)


@HOW_MANY
def test_broken_forms(client: TestClient, examples: int) -> None:
    def check(pieces: list[bytes], kind: str, end: bytes) -> None:
        headers = {b"content-type": kind.encode("latin-1")}
        assert_valid(client.post("/v1/ground", content=b"--x\r\n" + end.join(pieces), headers=headers))

    fuzz(examples, check, pieces=st.lists(PIECES, max_size=12), kind=KINDS, end=st.sampled_from([b"\r\n", b"\n"]))


def test_the_file_of_an_incomplete_form_is_closed(client: TestClient) -> None:
    """Python warns about a file left open, which is an error in pytest."""
    body = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + VALID_IMAGES["PNG"]
    assert_valid(client.post("/v1/ground", content=body, headers=FORM))
    gc.collect()


@HOW_MANY
def test_broken_json(client: TestClient, examples: int) -> None:
    def check(body: Any, position: int, junk: bytes) -> None:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        for content in (text, text[:position] + junk + text[position:]):
            assert_valid(client.post("/v1/ground", content=content, headers=JSON))

    leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(VALID_BASE64)
    keys = st.sampled_from(["image", "phrases", "min_score", "x"])
    tree = st.recursive(leaf, lambda part: st.lists(part, max_size=3) | st.dictionaries(keys, part, max_size=3))
    fuzz(examples, check, body=tree | st.binary(max_size=50), position=st.integers(0, 60), junk=st.binary(max_size=3))


def test_json_bombs(client: TestClient) -> None:
    query = f'{{"image": "{VALID_BASE64}", "phrases": %s}}'
    bombs = [
        b"[" * 1_000_000,
        b'{"image":' * 100_000,
        (query % ("[" * 50_000 + "]" * 50_000)).encode(),
        (query % ("9" * 1_000_000)).encode(),
        (query % "[1e999999999]").encode(),
        (query % "[NaN, -Infinity]").encode(),
        (query % '["\\ud800"]').encode(),
        (query % ('["' + "a" * 5_000_000 + '"]')).encode(),
        (query % ("[" + '"it",' * 100_000 + '"it"]')).encode(),
        b"\xef\xbb\xbf" + (query % '["it"]').encode(),
        (query % '["it"]').encode("utf-16"),
        b"{" + b'"image": "a", ' * 10_000 + b'"phrases": ["it"]}',
    ]
    for bomb in bombs:
        response = client.post("/v1/ground", content=bomb, headers=JSON)
        assert response.status_code in (400, 422), bomb[:60]
        assert len(response.json()["error"]) < 400


# ---- images that are larger than they look ----


def png(width: int, height: int, rows: bytes, *more: tuple[bytes, bytes], kind: int = 0) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)),
        *more,
        (b"IDAT", rows),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def resized(image: bytes, position: int, form: str, *size: int) -> bytes:
    """Declare another size in the header of a valid image."""
    return image[:position] + struct.pack(form, *size) + image[position + struct.calcsize(form) :]


def bombs() -> dict[str, bytes]:
    zeros = zlib.compress(bytes(30_000_000), 9)  # 30 KB
    text = b"comment\0\0" + zeros
    jpeg = VALID_IMAGES["JPEG"]
    return {
        "PNG of 2^31 pixels a side": png(2**31 - 1, 2**31 - 1, zeros),
        "PNG of 30,000 pixels a side": png(30_000, 30_000, zeros),
        "PNG with more rows than it declares": png(10, 10, zeros),
        "PNG with fewer rows than it declares": png(5_000, 1_900, zlib.compress(b"\0" * 50)),
        "PNG without pixels": png(0, 0, zeros),
        "PNG with a compressed comment": png(10, 10, zlib.compress(bytes(110)), (b"zTXt", text)),
        "PNG with a hundred compressed comments": png(10, 10, zlib.compress(bytes(110)), *[(b"zTXt", text)] * 100),
        "PNG with a compressed profile": png(10, 10, zlib.compress(bytes(110)), (b"iCCP", text)),
        "PNG one pixel high": png(9_000_000, 1, zlib.compress(bytes(9_000_001))),
        "PNG one pixel wide": png(1, 4_000_000, zlib.compress(bytes(8_000_000))),
        "GIF of 65,535 pixels a side": resized(VALID_IMAGES["GIF"], 6, "<HH", 65_535, 65_535),
        "GIF with a frame beyond its screen": VALID_IMAGES["GIF"].replace(
            b",\0\0\0\0" + struct.pack("<HH", 24, 16), b",\0\0\0\0" + struct.pack("<HH", 65_535, 65_535)
        ),
        "GIF of a thousand frames": gif_of(1_000),
        "JPEG of 65,500 pixels a side": resized(jpeg, jpeg.index(b"\xff\xc0") + 5, ">HH", 65_500, 65_500),
        "BMP of 2^31 pixels a side": resized(VALID_IMAGES["BMP"], 18, "<ii", 2**31 - 1, 2**31 - 1),
        "BMP of negative size": resized(VALID_IMAGES["BMP"], 18, "<ii", -24, -(2**31)),
        "WebP of 16,383 pixels a side": resized(VALID_IMAGES["WEBP"], 26, "<HH", 16_383, 16_383),
    }


def gif_of(count: int) -> bytes:
    out = io.BytesIO()
    frames = [Image.new("P", (8, 8), number % 250) for number in range(count)]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    return out.getvalue()


def test_image_bombs(client: TestClient) -> None:
    """Only images within the limit on pixels are decoded."""
    served = {
        "PNG one pixel high",
        "PNG one pixel wide",
        "GIF of a thousand frames",
        "PNG with more rows than it declares",
    }
    for name, bomb in bombs().items():
        assert len(bomb) < 4_000_000
        response = post(client, bomb)
        assert_valid(response)
        assert (response.status_code == 200) == (name in served), f"{name}: {response.text}"


# ---- connections ----


def send(address: str, content: bytes, *, rest: bytes = b"", seconds: float = 20.0) -> bytes:
    """Send bytes as they are and return all that comes back until the server closes the connection."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        try:
            connection.sendall(content)
            if not rest:
                connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65_536), b""))
        except ConnectionError:  # it closed the connection while we were sending
            return b""


def healthy(address: str) -> bool:
    response = send(address, b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", rest=b"-")
    return response.startswith(b"HTTP/1.1 200 ")


def open_files(address: str) -> int:
    """Return the number of open files of this process, with the server's sockets."""
    response = send(address, b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", rest=b"-")
    found = re.search(rb"^process_open_fds (\d+)", response, re.MULTILINE)
    assert found, response
    return int(found.group(1))


HEADS = [
    b"Host: a",
    b"Host: a\r\nHost: b",
    b"Host:",
    b"Host: \xff\xfe",
    b"Content-Length: 0",
    b"Content-Length: 5",
    b"Content-Length: -1",
    b"Content-Length: +5",
    b"Content-Length: 5, 5",
    b"Content-Length: 5, 6",
    b"Content-Length: 1e3",
    b"Content-Length: " + b"9" * 19,
    b"Content-Length: " + b"9" * 6_000,
    b"Content-Length: \xb2",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: gzip",
    b"Transfer-Encoding : chunked",
    b"Content-Type: application/json",
    b"Content-Type: multipart/form-data; boundary=x",
    b"Content-Type: \xff",
    b"Content-Encoding: gzip",
    b"Expect: 100-continue",
    b"Expect: nothing",
    b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\nSec-WebSocket-Version: 13",
    b"Connection: upgrade\r\nUpgrade: h2c",
    b"Authorization: Bearer \xff\xfe",
    b"Authorization: Bearer",
    b"Range: bytes=0-5,4-2,-999999999999",
    b"If-None-Match: *",
    b"If-Modified-Since: never",
    b"X-Forwarded-For: <script>, 999.999.999.999",
    b"X-Forwarded-Proto: javascript",
    b"Cookie: " + b"a=b; " * 2_000,
    b"Long: " + b"a" * 30_000,
    b"Many: a\r\n" * 3_000 + b"Many: a",
    b"Null: \x00",
    b": empty",
    b"no colon",
    b" folded: a",
]
TARGETS = [
    b"/",
    b"/v1/ground",
    b"/v1/ground/",
    b"/healthz",
    b"/metrics",
    b"/openapi.json",
    b"/static/samples/camera.jpg",
    b"/static/page.css",
    b"/static/",
    b"/static/%2e%2e/app.py",
    b"/static/..%2f..%2fapp.py",
    b"/static/%00",
    b"/static/" + b"a" * 5_000,
    b"//etc/passwd",
    b"/%ff%fe?%ff=%00&a[]=<b>",
    b"http://elsewhere/healthz",
    b"*",
    b"",
    b"\xff",
]
METHODS = [
    b"GET",
    b"POST",
    b"HEAD",
    b"OPTIONS",
    b"PUT",
    b"DELETE",
    b"TRACE",
    b"CONNECT",
    b"PRI",
    b"get",
    b"\x00",
    b"G" * 500,
]
VERSIONS = [b" HTTP/1.1", b" HTTP/1.0", b" HTTP/2.0", b" HTTP/9.9", b" http/1.1", b"", b" HTTP/1.1 "]
BODIES = [
    b"",
    b"hello",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"zz\r\n",
    b"ffffffffffffffffffff\r\n",
    b"-1\r\n",
    b"--x--\r\n",
    b"\x00" * 100,
]


@pytest.fixture(scope="module")
def strict() -> Iterator[str]:
    """A server with a token and short timeouts."""
    with serving(FakePredictor(), Limits(request_timeout=2, header_timeout=2), token="s3cret") as address:
        yield address


@HOW_MANY
@pytest.mark.filterwarnings("ignore:Generating overly large repr")
def test_odd_requests(strict: str, examples: int) -> None:
    """Whatever the headers, no 5xx, no traceback, and the next request is served."""

    def check(method: bytes, target: bytes, version: bytes, heads: list[bytes], body: bytes, end: bytes) -> None:
        head = end.join([method + b" " + target + version, *heads, b"", b""])
        response = send(strict, head + body)
        assert not re.search(rb"^HTTP/1\.[01] 5", response, re.MULTILINE), response[:300]
        assert b"Traceback" not in response

    lists = st.lists(st.sampled_from(HEADS) | st.binary(max_size=30), max_size=4)
    parts = {"method": METHODS, "target": TARGETS, "version": VERSIONS, "body": BODIES, "end": [b"\r\n", b"\n"]}
    often = {"method": METHODS[:2] * 6, "version": VERSIONS[:1] * 8, "end": [b"\r\n"] * 8}
    fuzz(
        examples,
        check,
        heads=lists,
        **{name: st.sampled_from(values + often.get(name, [])) for name, values in parts.items()},
    )
    assert healthy(strict)


def test_connections_of_slow_clients_are_closed() -> None:
    """Headers and bodies that do not end, and responses that are not read."""
    form = b"POST /v1/ground HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    image = b"GET /static/samples/camera.jpg HTTP/1.1\r\nHost: a\r\n\r\n"
    with serving(FakePredictor(), Limits(request_timeout=0.4, header_timeout=0.4)) as address:
        assert send(address, b"GET /hea", rest=b"lthz") == b""
        assert send(address, b"", rest=b"a request that never comes") == b""
        assert send(address, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET /h", rest=b"-").count(b"HTTP/1.1") == 1
        for length in (b"Content-Length: 1000\r\n\r\n--x\r\n", b"Transfer-Encoding: chunked\r\n\r\n5\r\n--x\r\n\r\n"):
            assert send(address, form + length, rest=b"-").startswith(b"HTTP/1.1 408 ")
        before = open_files(address)
        host, port = address.removeprefix("http://").split(":")
        with ExitStack() as stack:
            for _ in range(3):
                connection = stack.enter_context(socket.socket())
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
                connection.connect((host, int(port)))
                connection.sendall(image * 200)  # 200 images requested, none of them read
            for _ in range(600):
                if open_files(address) <= before + 3:  # the client's ends; the server's are closed
                    break
                time.sleep(0.1)
            else:
                raise AssertionError("the server still waits for clients that do not read")


def test_idle_connections_stay_open_and_incomplete_headers_do_not() -> None:
    """Proxies keep connections idle for a minute, longer than headers may take."""
    get = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
    with serving(FakePredictor(), Limits(header_timeout=0.3, keep_alive_timeout=1.5)) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            for _ in range(2):
                connection.sendall(get)
                response = b""
                while not response.endswith(b"}"):
                    response += connection.recv(65_536)
                assert response.startswith(b"HTTP/1.1 200")
                time.sleep(0.8)
            connection.sendall(get[:9])
            started = time.perf_counter()
            with suppress(ConnectionError):
                assert connection.recv(1) == b""
            assert time.perf_counter() - started < 1.2
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(get)
            assert b"".join(iter(lambda: connection.recv(65_536), b"")).endswith(b"}"), (
                "an idle connection is closed in the end"
            )
    assert Limits().keep_alive_timeout > 75


def test_bodies_that_pause_are_rejected() -> None:
    head = b"POST /v1/ground HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n{"
    with serving(FakePredictor(), Limits(read_timeout=0.3, header_timeout=0.3)) as address:
        response = send(address, head, rest=b"-")
        assert response.startswith(b"HTTP/1.1 408 ") and b"did not arrive in time" in response


def test_connections_are_limited() -> None:
    """Of twelve silent connections seven are closed; the other five are served."""
    with serving(FakePredictor(), Limits(max_connections=5, header_timeout=60)) as address, ExitStack() as stack:
        host, port = address.removeprefix("http://").split(":")
        connections = [stack.enter_context(socket.create_connection((host, int(port)), timeout=20)) for _ in range(12)]
        for connection in connections[5:]:
            with suppress(ConnectionError):
                assert connection.recv(1) == b""
        for connection in connections[:5]:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert connection.recv(12) == b"HTTP/1.1 200"
