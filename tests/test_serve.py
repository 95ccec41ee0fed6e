"""The server: it answers as `Predictor` does, alone and in a crowd, and says no in one sentence."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from serving import serving

from epmvg.core.types import InputError, Prediction
from epmvg.inference.predictor import Predictor
from epmvg.models.factory import save
from epmvg.models.grounder import Grounder
from epmvg.serve.app import STATIC, create_app
from epmvg.serve.limits import Limits
from epmvg.serve.pictures import FORMATS, Pictures
from epmvg.serve.server import listen

EXAMPLE = Path(__file__).parents[1] / "examples" / "serve_client.py"
JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=x"}
PHRASES = ["the red square", "a dog on the left", "it"]


def picture(colour: str = "teal", size: tuple[int, int] = (80, 60), kind: str = "PNG") -> bytes:
    image = Image.new("RGB", size, colour)
    image.paste((200, 30, 30), (size[0] // 8, size[1] // 8, size[0] // 2, size[1] // 2))
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def multipart(client: TestClient, image: bytes, phrases: list[str], **more: Any) -> Any:
    return client.post("/v1/ground", files={"image": ("a.png", image)}, data={"phrases": phrases}, **more)


def question(image: bytes, phrases: list[str]) -> dict[str, Any]:
    return {"image": base64.b64encode(image).decode(), "phrases": phrases}


def agree(answer: dict[str, Any], found: list[Prediction]) -> None:
    """The same but for float noise: phrases are padded to the longest of their batch, boxes rounded to 0.01 px."""
    assert [one["phrase"] for one in answer["results"]] == [one.phrase for one in found]
    for one, other in zip(answer["results"], found, strict=True):
        assert one["box"] == pytest.approx(other.box, abs=0.02)
        assert one["score"] == pytest.approx(other.score, abs=1e-4)


class Held:
    """A model that answers when it is let go, and remembers what it was asked."""

    image_size, threshold, domain = 64, 0.5, "coloured rectangles"

    def __init__(self) -> None:
        self.go = threading.Event()
        self.entered = threading.Event()
        self.calls: list[list[list[str]]] = []

    def predict_batch(
        self,
        questions: Sequence[tuple[Image.Image, list[str]]],
        keys: Sequence[bytes],
        sizes: Sequence[tuple[int, int]],
    ) -> list[list[Prediction]]:
        phrases = [asked for _, asked in questions]
        self.calls.append(phrases)
        self.entered.set()
        assert self.go.wait(30)
        if any("unreadable" in asked for asked in phrases):
            raise InputError("The phrase 'unreadable' cannot be asked.")
        if any("crash" in asked for asked in phrases):
            raise RuntimeError("out of memory")
        return [[self._found(*size, phrase) for phrase in asked] for size, asked in zip(sizes, phrases, strict=True)]

    @staticmethod
    def _found(width: int, height: int, phrase: str) -> Prediction:
        return Prediction(phrase, (0.0, 0.0, float(width), float(height)), 0.4 if phrase == "unlikely" else 0.5)


@pytest.fixture
def predictor(tiny: Grounder) -> Predictor:
    return Predictor(tiny)


@pytest.fixture
def client(predictor: Predictor) -> Iterator[TestClient]:
    with TestClient(create_app(predictor)) as opened:
        yield opened


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within 30 s")


def metric(client: TestClient, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return float(found.group(1)) if found else 0.0


def test_multipart_and_json_agree_with_the_predictor(client: TestClient, predictor: Predictor) -> None:
    for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        image = picture(kind=kind)
        found = predictor(image, PHRASES)
        by_form = multipart(client, image, PHRASES)
        by_json = client.post("/v1/ground", json=question(image, PHRASES))
        as_url = question(image, PHRASES) | {"image": "data:image/png;base64," + base64.b64encode(image).decode()}
        assert by_form.status_code == 200, by_form.text
        assert (by_form.json()["width"], by_form.json()["height"]) == (80, 60)
        agree(by_form.json(), found)
        assert by_form.json() == by_json.json() == client.post("/v1/ground", json=as_url).json()


def test_a_crowd_gets_the_answers_of_one(client: TestClient, predictor: Predictor) -> None:
    asked = [(picture(colour), PHRASES[: 1 + number % 3]) for number, colour in enumerate(["teal", "navy", "teal"] * 6)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda one: multipart(client, *one), asked))
    for (image, phrases), answer in zip(asked, answers, strict=True):
        assert answer.status_code == 200
        agree(answer.json(), predictor(image, phrases))


def test_what_waits_is_answered_together() -> None:
    """Six requests about three pictures, two to a pass; a phrase that cannot be asked spoils nobody else's answer."""
    held, opened = Held(), [f'epmvg_pictures_total{{kept="{kept}"}}' for kept in ("yes", "no")]
    with TestClient(create_app(held, Limits(together=2))) as client, ThreadPoolExecutor(8) as pool:
        first = pool.submit(multipart, client, picture(), ["first"])
        assert held.entered.wait(30)
        rest = []
        for colour, phrase in (("teal", "a"), ("navy", "b"), ("teal", "c"), ("gold", "unreadable"), ("gold", "d")):
            rest.append(pool.submit(multipart, client, picture(colour), [phrase, "shared"]))
            wait_for(lambda: sum(metric(client, name) for name in opened) > len(rest))
        held.go.set()
        assert first.result().status_code == 200
        answers = [future.result() for future in rest]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 422, 200]
        assert [one["phrase"] for one in answers[2].json()["results"]] == ["c", "shared"]
        assert answers[3].json() == {"error": "The phrase 'unreadable' cannot be asked."}
        assert held.calls[:3] == [[["first"]], [["a", "shared", "c"], ["b", "shared"]], [["unreadable", "shared", "d"]]]
        assert metric(client, "epmvg_batch_questions_count") == 3
        assert metric(client, "epmvg_batch_questions_sum") == 6
        assert metric(client, "epmvg_pictures_inside") == 0


def test_a_batch_answers_each_question_for_itself(client: TestClient, predictor: Predictor) -> None:
    good = question(picture(), PHRASES)
    bad = {"image": "bm8=", "phrases": ["it"]}
    answer = client.post("/v1/ground/batch", json={"questions": [good, bad, good | {"phrases": [" "]}, good]})
    assert answer.status_code == 200, answer.text
    first, second, third, fourth = answer.json()["answers"]
    agree(first, predictor(picture(), PHRASES))
    assert first == fourth and "give JPEG" in second["error"] and "empty" in third["error"]


def test_a_full_house_says_when_to_come_back() -> None:
    held = Held()
    with TestClient(create_app(held, Limits(queue=2))) as client, ThreadPoolExecutor(2) as pool:
        inside = [pool.submit(multipart, client, picture(), ["it"]) for _ in range(2)]
        wait_for(lambda: metric(client, "epmvg_pictures_inside") == 2)
        refused = multipart(client, picture(), ["it"])
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert refused.json() == {"error": "The server is busy: ask again in 1 s."}
        held.go.set()
        assert [future.result().status_code for future in inside] == [200, 200]
        three = {"questions": [question(picture(), ["it"])] * 3}
        assert client.post("/v1/ground/batch", json=three).status_code == 429
        assert multipart(client, picture(), ["it"]).status_code == 200
        assert metric(client, 'epmvg_requests_total{route="/v1/ground",status="429"}') == 1


def test_clients_that_do_not_get_on_take_no_place_from_others() -> None:
    """Three bodies that stop after their first byte, in a house for two pictures; only what has arrived is counted."""
    head = b"POST /v1/ground HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    held = Held()
    held.go.set()
    with serving(held, Limits(queue=2)) as address, contextlib.ExitStack() as closing:
        host, port = address.removeprefix("http://").split(":")
        for _ in range(3):
            line = closing.enter_context(socket.create_connection((host, int(port)), timeout=20))
            line.sendall(head + b"Content-Length: 10000000\r\n\r\n-")
        wait_for(lambda: b"\nepmvg_body_bytes_inside 3.0\n" in urlopen(f"{address}/metrics").read())
        body = json.dumps(question(picture(), ["it"])).encode()
        with urlopen(Request(f"{address}/v1/ground", body, JSON)) as answer:
            assert answer.status == 200


def test_bodies_that_have_arrived_are_bounded_together_and_given_back(predictor: Predictor) -> None:
    image = picture(kind="BMP")
    with TestClient(create_app(predictor, Limits(upload=20_000, bodies=20_000))) as client:
        for _ in range(3):
            assert multipart(client, image, ["it"]).status_code == 200 and len(image) > 10_000
            assert metric(client, "epmvg_body_bytes_inside") == 0
    held = Held()
    with TestClient(create_app(held, Limits(upload=20_000, bodies=20_000))) as client, ThreadPoolExecutor(2) as pool:
        batch = {"questions": [question(image, ["it"])]}
        first = pool.submit(client.post, "/v1/ground/batch", json=batch)
        assert held.entered.wait(30)
        assert client.post("/v1/ground/batch", json=batch).status_code == 429
        held.go.set()
        assert first.result().status_code == 200
    with pytest.raises(InputError, match="`bodies`"):
        Limits(upload=2, bodies=1)


def test_a_picture_that_waits_is_no_larger_than_the_model_sees() -> None:
    """A photo of 6 megapixels takes kilobytes until it is asked about, and its box is in its own pixels."""
    pictures = Pictures(Limits(), 64)
    for kind in ("JPEG", "PNG"):
        kept, _ = pictures.open(picture(size=(3000, 2000), kind=kind))
        assert max(kept.image.size) == 64 and kept.size == (3000, 2000)
    held = Held()
    held.go.set()
    with TestClient(create_app(held)) as client:
        answer = multipart(client, picture(size=(600, 400)), ["it"]).json()
    assert (answer["width"], answer["height"]) == (600, 400) and answer["results"][0]["box"] == [0, 0, 600, 400]


def test_the_formats_and_the_bound_hold_for_what_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One opening judges a picture and decodes it."""
    opened: list[Any] = []
    read = Image.open

    def noted(*arguments: Any, **options: Any) -> Any:
        opened.append(options.get("formats"))
        return read(*arguments, **options)

    monkeypatch.setattr(Image, "open", noted)
    Pictures(Limits(), 64).open(picture())
    assert opened == [FORMATS]


def test_base64_in_its_usual_spellings(client: TestClient) -> None:
    image = picture("white", (6, 5), "BMP")
    whole = base64.b64encode(image).decode()
    assert "/" in whole and whole.endswith("=")
    urlsafe = base64.urlsafe_b64encode(image).decode()
    spellings = [whole, base64.encodebytes(image).decode(), urlsafe, urlsafe.rstrip("="), whole.rstrip("=") + "\n"]
    spellings += [f"data:image/bmp;base64,{base64.encodebytes(image).decode()}", "\r\n".join(whole)]
    answers = [client.post("/v1/ground", json={"image": text, "phrases": ["it"]}) for text in spellings]
    assert [answer.status_code for answer in answers] == [200] * len(spellings)
    assert len({answer.text for answer in answers}) == 1
    for wrong in ("a", "aaaa=aaa", "aa*a", "aaé="):
        assert "not base64" in client.post("/v1/ground", json={"image": wrong, "phrases": ["it"]}).json()["error"]


def test_phrases_in_every_way_that_clients_send_them(client: TestClient) -> None:
    image = picture()

    def form(field: str, *values: str) -> Any:
        return client.post("/v1/ground", files={"image": image}, data={field: list(values)})

    two = [form("phrases", "it", "a dog"), form("phrases[]", "it", "a dog"), form("phrases", '["it", "a dog"]')]
    for answer in two:
        assert [one["phrase"] for one in answer.json()["results"]] == ["it", "a dog"], answer.text
    one = client.post("/v1/ground", json=question(image, []) | {"phrases": "it"})
    assert one.json() == form("phrases", "it").json()
    for literal in ("[it]", "[1, 2]", "[]"):
        assert form("phrases", literal).json()["results"][0]["phrase"] == literal
    assert "once for each phrase" in form("phrases", "['it', 'a dog']").json()["error"]
    assert "There are 33 phrases" in form("phrases", str(["it"] * 33).replace("'", '"')).json()["error"]


def test_what_scores_too_little_is_not_found(predictor: Predictor) -> None:
    held, image = Held(), picture()
    held.go.set()
    asked = question(image, ["unlikely", "it"])
    with TestClient(create_app(held)) as client:

        def found(min_score: Any) -> list[bool]:
            by_json = client.post("/v1/ground", json=asked | {"min_score": min_score}).json()
            by_form = client.post(
                "/v1/ground", files={"image": image}, data={"phrases": asked["phrases"], "min_score": str(min_score)}
            ).json()
            both = {"questions": [asked | {"min_score": min_score}, asked | {"min_score": "high"}]}
            of_batch, fault = client.post("/v1/ground/batch", json=both).json()["answers"]
            assert by_json == by_form == of_batch and "min_score" in fault["error"]
            return [one["found"] for one in by_json["results"]]

        assert found("auto") == found(0.5) == [False, True]  # the stored threshold is 0.5
        assert found(0.4) == found(0) == [True, True] and found(1) == [False, False]
        assert all(one["found"] for one in client.post("/v1/ground", json=asked).json()["results"])
        for wrong in (2, -0.1, "0.5", "high", True, [0.5], 10**400):
            refused = client.post("/v1/ground", json=asked | {"min_score": wrong})
            assert refused.status_code == 422 and "a number from 0 to 1" in refused.json()["error"], refused.text
        refused = client.post("/v1/ground", content=b'{"image": "", "phrases": "it", "min_score": NaN}', headers=JSON)
        assert refused.status_code == 422
    with TestClient(create_app(predictor)) as client:
        assert "no stored threshold" in client.post("/v1/ground", json=asked | {"min_score": "auto"}).json()["error"]


def test_what_the_model_knows_is_said() -> None:
    with TestClient(create_app(Held())) as client:
        told = client.get("/healthz").json()
    assert (told["status"], told["domain"], told["threshold"]) == ("ok", "coloured rectangles", 0.5)


def test_head_is_answered_as_get_without_a_body(client: TestClient) -> None:
    for path in (
        "/",
        "/docs",
        "/healthz",
        "/metrics",
        "/samples",
        "/samples/0.jpg",
        "/openapi.json",
        "/static/page.js",
    ):
        got, head = client.get(path), client.head(path)
        assert head.status_code == 200 and head.content == b"", path
        assert head.headers["content-type"] == got.headers["content-type"]
    assert client.head("/v1/ground").status_code == 405
    assert client.head("/nothing").status_code == 404


def test_a_name_that_is_not_this_server_s_is_refused(predictor: Predictor) -> None:
    """So a page of another site, whose name was made to resolve to this machine, reads nothing."""
    with TestClient(create_app(predictor, hosts=["localhost", "[::1]"])) as client:
        for host, status in {
            "localhost:8000": 200,
            "LOCALHOST": 200,
            "[::1]:80": 200,
            "evil.example:8000": 400,
        }.items():
            answer = client.get("/healthz", headers={"host": host})
            assert answer.status_code == status, host
        assert "with a token" in answer.json()["error"] and "content-security-policy" in answer.headers


def test_a_late_answer_is_a_504_and_leaves_nothing_behind() -> None:
    held = Held()
    with TestClient(create_app(held, Limits(seconds=0.3))) as client, ThreadPoolExecutor(2) as pool:
        late = list(pool.map(lambda phrase: multipart(client, picture(), [phrase]), ["one", "two"]))
        assert [answer.status_code for answer in late] == [504, 504]
        assert "within 0.3 s" in late[0].json()["error"] and metric(client, "epmvg_pictures_inside") == 0
        held.go.set()
        wait_for(lambda: multipart(client, picture(), ["it"]).status_code == 200)
        assert len(held.calls) == 2, "a question that its caller gave up was still asked"


def test_a_body_that_does_not_come_is_a_408() -> None:
    """Called without a server: the body's first piece arrives, the second never does."""
    pieces = [{"type": "http.request", "body": b"--x", "more_body": True}]
    sent: list[Any] = []

    async def receive() -> Any:
        return pieces.pop() if pieces else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/ground", "query_string": b""}
    headers = [(name.encode(), value.encode()) for name, value in FORM.items()]
    asyncio.run(create_app(Held(), Limits(seconds=0.2))(scope | {"headers": headers}, receive, send))
    assert sent[0]["status"] == 408 and b"took too long to arrive" in sent[1]["body"]


def test_limits_are_kept(predictor: Predictor) -> None:
    limits = Limits(upload=4_000, pixels=5_000, phrases=2, letters=20, pictures=2)
    noise = Image.effect_noise((60, 60), 90)
    out = io.BytesIO()
    noise.save(out, "BMP")
    with TestClient(create_app(predictor, limits)) as client:
        assert multipart(client, picture(), ["it"]).status_code == 200
        large = out.getvalue() * 2
        faults = [
            (multipart(client, large, ["it"]), 413, "larger than 4,000 bytes"),
            (client.post("/v1/ground", json=question(large, ["it"])), 413, "larger than 4,000 bytes"),
            (client.post("/v1/ground", content=iter([b"{"] * 5_000), headers=JSON), 413, "larger than 4,000 bytes"),
            (multipart(client, picture(size=(100, 51)), ["it"]), 422, "100 x 51 pixels, more than 5,000"),
            (multipart(client, picture(), ["a", "b", "c"]), 422, "There are 3 phrases: send 1 to 2"),
            (multipart(client, picture(), ["a" * 21]), 422, "21 characters, more than 20"),
            (client.post("/v1/ground/batch", json={"questions": []}), 422, "There are 0 questions: send 1 to 2"),
        ]
        for answer, status, words in faults:
            assert answer.status_code == status and words in answer.json()["error"], answer.text
    for wrong in ({"queue": 0}, {"seconds": -1.0}, {"pixels": 10**9}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            Limits(**wrong)


def test_bad_bodies_are_one_sentence(client: TestClient) -> None:
    image = picture()
    files = {"image": ("a.png", image)}
    faults: list[tuple[Any, int, str]] = [
        (client.post("/v1/ground", content=b"{", headers=JSON), 400, "Invalid JSON"),
        (client.post("/v1/ground", json=[]), 422, "The body: "),
        (client.post("/v1/ground", json={"image": "aa=="}), 422, "phrases: Field required"),
        (client.post("/v1/ground", json=question(image, ["it"]) | {"x": 1}), 422, "x: Extra inputs"),
        (client.post("/v1/ground", json={"image": "!", "phrases": ["it"]}), 422, "not base64"),
        (client.post("/v1/ground", json=question(image, [])), 422, "There are 0 phrases"),
        (client.post("/v1/ground", content=b"hello"), 415, "multipart/form-data"),
        (client.post("/v1/ground", content=b"--x", headers={"content-type": "multipart/form-data"}), 400, "multipart"),
        (client.post("/v1/ground", content=b"nonsense", headers=FORM), 400, "multipart"),
        (client.post("/v1/ground", data={"phrases": "it", "image": "text"}, files={}), 415, "multipart"),
        (client.post("/v1/ground", files=files), 422, "There are 0 phrases"),
        (client.post("/v1/ground", files=files, data={"phrase": "it"}), 422, "no field 'phrase'"),
        (client.post("/v1/ground", files=[("image", image), ("image", image)]), 422, "must be one file"),
        (client.post("/v1/ground", files={**files, "phrases": ("a", b"it")}), 422, "must be text"),
        (multipart(client, b"", ["it"]), 422, "is empty"),
        (multipart(client, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", ["it"]), 422, "give JPEG"),
        (multipart(client, picture(kind="JPEG")[:-40], ["it"]), 422, "cannot be decoded"),
        (multipart(client, image, [" "]), 422, "the phrase is empty"),
        (client.get("/v1/ground"), 405, "Method Not Allowed"),
        (client.get("/static/../app.py"), 404, "Not Found"),
        (client.get("/samples/99.jpg"), 404, "no such sample"),
    ]
    for answer, status, words in faults:
        error = answer.json()["error"]
        assert answer.status_code == status and words in error and "\n" not in error, answer.text
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_failing_model_is_a_500_without_its_innards(caplog: pytest.LogCaptureFixture) -> None:
    held = Held()
    held.go.set()
    with TestClient(create_app(held)) as client:
        batch = [question(picture("navy"), ["crash"]), question(picture(), ["fine"])]
        first, second = client.post("/v1/ground/batch", json={"questions": batch}).json()["answers"]
        assert first == {"error": "The server failed; its log says why."} and second["results"][0]["phrase"] == "fine"
        assert metric(client, "epmvg_pictures_inside") == 0
        answer = multipart(client, picture(), ["crash"])
        assert answer.status_code == 500 and answer.json() == {"error": "The server failed; its log says why."}
        assert "out of memory" in caplog.text and "content-security-policy" in answer.headers
        assert multipart(client, picture(), ["fine"]).status_code == 200


def test_the_token_closes_the_api_and_leaves_the_page_open(predictor: Predictor) -> None:
    with TestClient(create_app(predictor, token="s3cret")) as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}):
            refused = multipart(client, picture(), ["it"], headers=headers)
            assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
            assert client.post("/v1/ground/batch", content=b"{", headers=headers).status_code == 401
            assert client.get("/metrics", headers=headers).status_code == 401
        known = {"Authorization": "Bearer s3cret"}
        assert multipart(client, picture(), ["it"], headers=known).status_code == 200
        assert client.get("/metrics", headers=known).status_code == 200
        for path in ("/", "/docs", "/openapi.json", "/healthz", "/samples", "/static/page.js"):
            assert client.get(path).status_code == 200, path


def test_counters_move(client: TestClient) -> None:
    for _ in range(2):
        assert multipart(client, picture(), PHRASES).status_code == 200
    assert metric(client, 'epmvg_requests_total{route="/v1/ground",status="200"}') == 2
    assert metric(client, "epmvg_phrases_total") == 6
    assert metric(client, 'epmvg_pictures_total{kept="no"}') == 1
    assert metric(client, 'epmvg_pictures_total{kept="yes"}') == 1
    assert metric(client, 'epmvg_request_seconds_count{route="/v1/ground"}') == 2


def test_kept_pictures_stay_within_their_bytes(predictor: Predictor) -> None:
    with TestClient(create_app(predictor, Limits(kept=2 * 3 * 64 * 48))) as client:
        for colour in ("teal", "navy", "gold", "teal", "gold"):
            multipart(client, picture(colour), ["it"])
        assert metric(client, 'epmvg_pictures_total{kept="yes"}') == 1


def test_openapi_tells_what_the_endpoints_take(client: TestClient) -> None:
    told = client.get("/openapi.json").json()
    assert set(told["paths"]) == {"/v1/ground", "/v1/ground/batch", "/healthz", "/metrics", "/samples"}
    ground = told["paths"]["/v1/ground"]["post"]
    assert set(ground["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
    assert {"200", "401", "413", "422", "429", "504"} <= set(ground["responses"])
    assert client.get("/healthz").json()["status"] == "ok"


def test_the_page_makes_no_request_elsewhere(client: TestClient) -> None:
    for file in STATIC.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(https?:)?//[a-z]|@import|\burl\(", re.sub(r"^\s*//.*|\s// .*", "", text, flags=re.M)), (
            file
        )
        assert not re.search(r"<script(?![^>]* src)|<style|\son[a-z]+=|innerHTML|eval\(", text), (
            f"{file} breaks the CSP"
        )
    for path in ("/", "/docs"):
        page = client.get(path)
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        for address in re.findall(r'(?:href|src)="([^"]+)"', page.text):
            assert client.get(f"/{address.lstrip('./')}").status_code == 200, address
    for sample in client.get("/samples").json():
        assert client.get(f"/{sample['image']}").headers["content-type"] == "image/jpeg" and sample["phrases"]


@contextlib.contextmanager
def served(run: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`epmvg serve` as people run it, on a free port -> (process, address)."""
    command = [sys.executable, "-m", "epmvg", "serve", str(run), "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        address = re.search(r"at (http://\S+)", line)
        assert address, line + process.stderr.read()
        yield process, address.group(1)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def run(tiny: Grounder, tmp_path: Path) -> Path:
    save(tiny, tmp_path / "run")
    return tmp_path / "run"


def test_a_stopped_server_finishes_what_it_accepted(run: Path, tmp_path: Path) -> None:
    """A request whose body is still on its way when SIGTERM comes gets its answer; then the server is gone."""
    image = picture()
    boundary = b"--x\r\nContent-Disposition: form-data; name="
    body = (
        boundary + b'"phrases"\r\n\r\nit\r\n' + boundary + b'"image"; filename="a"\r\n\r\n' + image + b"\r\n--x--\r\n"
    )
    with served(run) as (process, address):
        (tmp_path / "a.png").write_bytes(image)
        client = [sys.executable, str(EXAMPLE), str(tmp_path / "a.png"), "it", "a dog"]
        said = subprocess.run(
            client, env={**os.environ, "EPMVG_SERVER": address}, capture_output=True, text=True, check=True
        )
        assert re.fullmatch(r"0\.\d\d  it  \[.*\]\n0\.\d\d  a dog  \[.*\]\n", said.stdout)
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as line:
            line.sendall(
                b"POST /v1/ground HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:100]
            )
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            with pytest.raises(OSError):
                socket.create_connection((host, int(port)), timeout=5)
            line.sendall(body[100:])
            answer = b"".join(iter(lambda: line.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200") and b'"phrase":"it"' in answer
        process.wait(60)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_mistakes_at_the_start_are_one_sentence(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from epmvg.cli import main

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        mistakes = {
            "port taken": (["--port", port], "choose another"),
            "no such host": (["--host", "192.0.2.1"], "choose another"),
            "no such port": (["--port", "99999"], "choose another"),
            "no uploads": (["--upload-mb", "0"], "`upload` is 0"),
            "token with a line": (["--token", "a\nb"], "The token must be"),
        }
        for name, (options, words) in mistakes.items():
            with pytest.raises(SystemExit) as ended:
                main(["serve", str(run), *options])
            said = capsys.readouterr().err.strip()
            assert ended.value.code == 2 and words in said and len(said.splitlines()) == 1, f"{name}: {said}"


def test_a_small_answer_does_not_wait_for_an_acknowledgement() -> None:
    with listen("127.0.0.1", 0) as door, socket.create_connection(door.getsockname()):
        connection, _ = door.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
