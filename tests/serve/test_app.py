"""Tests of the HTTP API: responses equal the predictor's, alone and concurrently; errors are one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from detectors import save_detector
from fastapi.testclient import TestClient
from serving import FORM, JSON, PHRASES, FakePredictor, as_json, client_of, encoded, metric, post_form, wait_for

from epmvg.core.types import Prediction
from epmvg.inference.predictor import Predictor


def assert_same(response: dict[str, Any], predictions: Sequence[Prediction]) -> None:
    """Compare but for float noise: phrases are padded to the longest of their batch, boxes rounded to 0.01 px."""
    assert [each["phrase"] for each in response["results"]] == [each.phrase for each in predictions]
    for result, prediction in zip(response["results"], predictions, strict=True):
        assert result["box"] == pytest.approx(prediction.box, abs=0.02)
        assert result["score"] == pytest.approx(prediction.score, abs=1e-4)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_forms_and_json_give_the_predictors_boxes(client: TestClient, predictor: Predictor, kind: str) -> None:
    image = encoded(kind=kind)
    from_form = post_form(client, image, PHRASES)
    assert from_form.status_code == 200, from_form.text
    assert (from_form.json()["width"], from_form.json()["height"]) == (80, 60)
    assert_same(from_form.json(), predictor(image, PHRASES))
    assert from_form.json() == client.post("/v1/ground", json=as_json(image, PHRASES)).json()


def test_concurrent_requests_get_the_same_results_as_single_ones(client: TestClient, predictor: Predictor) -> None:
    queries = [(encoded(color), PHRASES[: 1 + i % 3]) for i, color in enumerate(["teal", "navy", "teal"] * 6)]
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda query: post_form(client, *query), queries))
    for (image, phrases), response in zip(queries, responses, strict=True):
        assert response.status_code == 200
        assert_same(response.json(), predictor(image, phrases))


def test_boxes_are_in_pixels_of_the_uploaded_image() -> None:
    with client_of(FakePredictor()) as client:
        response = post_form(client, encoded(size=(600, 400)), ["it"]).json()
    assert (response["width"], response["height"]) == (600, 400) and response["results"][0]["box"] == [0, 0, 600, 400]


def test_min_score_decides_what_is_found(predictor: Predictor) -> None:
    image = encoded()
    query = as_json(image, ["unlikely", "it"])
    with client_of(FakePredictor()) as client:

        def found(min_score: Any) -> list[bool]:
            from_json = client.post("/v1/ground", json=query | {"min_score": min_score}).json()
            fields = {"phrases": query["phrases"], "min_score": str(min_score)}
            assert from_json == client.post("/v1/ground", files={"image": image}, data=fields).json()
            return [each["found"] for each in from_json["results"]]

        assert found("auto") == found(0.5) == [False, True]  # the stored threshold is 0.5
        assert found(0.4) == found(0) == [True, True] and found(1) == [False, False]
        assert all(each["found"] for each in client.post("/v1/ground", json=query).json()["results"])
    with client_of(predictor) as client:
        response = client.post("/v1/ground", json=query | {"min_score": "auto"})
        assert response.status_code == 422 and "no stored threshold" in response.json()["error"]


def test_top_k_gives_candidates() -> None:
    query = as_json(encoded(), ["it"])
    with client_of(FakePredictor()) as client:
        for top_k, scores in ((1, []), (3, [0.5, 0.25, 0.17]), (3.0, [0.5, 0.25, 0.17])):
            from_json = client.post("/v1/ground", json=query | {"top_k": top_k})
            fields = {"phrases": query["phrases"], "top_k": f"{top_k:.0f}"}
            assert from_json.json() == client.post("/v1/ground", files={"image": encoded()}, data=fields).json()
            (result,) = from_json.json()["results"]
            assert [round(each["score"], 2) for each in result["candidates"]] == scores
        for wrong in (0, 21, "many", 1.5, True, None):
            assert client.post("/v1/ground", json=query | {"top_k": wrong}).status_code == 422
        for wrong in ("0", "21", "many", "1.5", "9" * 5000):
            form = client.post("/v1/ground", files={"image": encoded()}, data={"phrases": "it", "top_k": wrong})
            assert form.status_code == 422 and "top_k" in form.json()["error"]


def test_health_reports_the_model() -> None:
    with client_of(FakePredictor()) as client:
        health = client.get("/healthz").json()
    assert health.pop("version")
    assert health == {"status": "ok", "model": "fake", "domain": "colored rectangles", "threshold": 0.5}


@pytest.mark.parametrize("path", ["/", "/docs", "/healthz", "/openapi.json", "/static/page.js"])
def test_head_requests_have_no_body(client: TestClient, path: str) -> None:
    response, head = client.get(path), client.head(path)
    assert head.status_code == 200 and head.content == b""
    assert head.headers["content-type"] == response.headers["content-type"]


def test_late_predictions_are_a_504_and_dropped() -> None:
    predictor = FakePredictor(released=False)
    with client_of(predictor, request_timeout=0.3) as client, ThreadPoolExecutor(2) as pool:
        responses = list(pool.map(lambda phrase: post_form(client, encoded(), [phrase]), ["one", "two"]))
        assert [response.status_code for response in responses] == [504, 504]
        assert "longer than 0.3 s" in responses[0].json()["error"]
        assert metric(client, "epmvg_images_in_progress") == 0
        predictor.release.set()
        wait_for(lambda: post_form(client, encoded(), ["it"]).status_code == 200)
        assert len(predictor.calls) == 2, "a cancelled query was predicted"


def post_charset(client: TestClient, charset: str) -> Any:
    content = b'--x\r\nContent-Disposition: form-data; name="phrases"\r\n\r\nit\r\n--x--\r\n'
    return client.post(
        "/v1/ground", content=content, headers={"content-type": f"{FORM['content-type']}; charset={charset}"}
    )


def test_errors_are_one_sentence(client: TestClient) -> None:
    image = encoded()
    files = {"image": ("a.png", image)}
    errors: list[tuple[Any, int, str]] = [
        (client.post("/v1/ground", content=b"{", headers=JSON), 400, "Invalid JSON"),
        (client.post("/v1/ground", json=[]), 422, "The body: "),
        (client.post("/v1/ground", json={"image": "aa=="}), 422, "phrases: Field required"),
        (client.post("/v1/ground", json=as_json(image, ["it"], x=1)), 422, "x: Extra inputs"),
        (client.post("/v1/ground", json={"image": "!", "phrases": ["it"]}), 422, "not base64"),
        (client.post("/v1/ground", json=as_json(image, [])), 422, "at least 1 item"),
        (client.post("/v1/ground", content=b"hello"), 415, "multipart/form-data"),
        (client.post("/v1/ground", content=b"--x", headers={"content-type": "multipart/form-data"}), 400, "boundary"),
        (client.post("/v1/ground", content=b"nonsense", headers=FORM), 400, "multipart"),
        *((post_charset(client, name), 400, "Send UTF-8") for name in ("undefined", "punycode", "a\0b")),
        (client.post("/v1/ground", data={"phrases": "it", "image": "text"}, files={}), 415, "multipart"),
        (client.post("/v1/ground", files=files), 422, "phrases: Field required"),
        (client.post("/v1/ground", files=files, data={"phrase": "it"}), 422, "phrase: Extra inputs"),
        (client.post("/v1/ground", files=[("image", image), ("image", image)], data={"phrases": "it"}), 422, "image: "),
        (client.post("/v1/ground", files={**files, "phrases": ("a", b"it")}), 422, "valid list"),
        (post_form(client, b"", ["it"]), 422, "is empty"),
        (post_form(client, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", ["it"]), 422, "JPEG"),
        (post_form(client, encoded(kind="JPEG")[:-40], ["it"]), 422, "cannot be decoded"),
        (post_form(client, image, [" "]), 422, "the phrase is empty"),
        (client.get("/v1/ground"), 405, "Method Not Allowed"),
        (client.get("/static/../app.py"), 404, "Not Found"),
    ]
    for response, status, words in errors:
        error = response.json()["error"]
        assert response.status_code == status and words in error and "\n" not in error, response.text
        assert response.headers["x-content-type-options"] == "nosniff"


def test_a_failing_model_is_a_500_without_details(caplog: pytest.LogCaptureFixture) -> None:
    with client_of(FakePredictor()) as client:
        response = post_form(client, encoded(), ["crash"])
        assert response.status_code == 500 and response.json()["error"].startswith("Internal server error.")
        assert "out of memory" in caplog.text and "content-security-policy" in response.headers
        assert metric(client, "epmvg_images_in_progress") == 0
        assert post_form(client, encoded(), ["fine"]).status_code == 200


def test_the_token_protects_the_api_and_not_the_page(predictor: Predictor) -> None:
    with client_of(predictor, token="s3cret") as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}):
            response = post_form(client, encoded(), ["it"], headers=headers)
            assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
            assert client.post("/v1/ground", content=b"{", headers=headers).status_code == 401
            assert client.get("/metrics", headers=headers).status_code == 401
        token = {"Authorization": "Bearer s3cret"}
        assert post_form(client, encoded(), ["it"], headers=token).status_code == 200
        assert client.get("/metrics", headers=token).status_code == 200
        for path in ("/", "/docs", "/openapi.json", "/healthz", "/static/page.js"):
            assert client.get(path).status_code == 200, path


def test_metrics_count(client: TestClient) -> None:
    for _ in range(2):
        assert post_form(client, encoded(), PHRASES).status_code == 200
    assert metric(client, 'epmvg_requests_total{route="/v1/ground",status="200"}') == 2
    assert metric(client, "epmvg_phrases_total") == 6
    assert metric(client, 'epmvg_images_total{cached="no"}') == 1
    assert metric(client, 'epmvg_images_total{cached="yes"}') == 1
    assert metric(client, 'epmvg_request_seconds_count{route="/v1/ground"}') == 2


def test_openapi_describes_the_routes(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/v1/ground", "/healthz", "/metrics"}
    ground = schema["paths"]["/v1/ground"]["post"]
    assert set(ground["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
    assert {"200", "401", "413", "422", "429", "504"} <= set(ground["responses"])


def test_other_host_names_are_rejected(predictor: Predictor) -> None:
    """A page of another site whose name resolves to this machine must not read responses."""
    hosts = {"localhost:8000": 200, "LOCALHOST": 200, "[::1]:80": 200, "evil.example:8000": 400}
    with client_of(predictor, hosts=["localhost", "[::1]"]) as client:
        for host, status in hosts.items():
            response = client.get("/healthz", headers={"host": host})
            assert response.status_code == status, host
        assert "with a token" in response.json()["error"] and "content-security-policy" in response.headers


def test_a_grounder_of_transformers_is_served_with_the_boxes_of_its_predictor(tmp_path: Path) -> None:
    predictor = Predictor(save_detector("owlv2", tmp_path))
    image = encoded(size=(90, 70))
    with client_of(predictor) as client:
        response = post_form(client, image, PHRASES)
        assert response.status_code == 200, response.text
        assert_same(response.json(), predictor(image, PHRASES))
        assert client.get("/healthz").status_code == 200
