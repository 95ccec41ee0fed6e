"""Tests of request bodies: base64, phrases and min_score in the forms that clients send."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError
from serving import JSON, as_json, encoded

from epmvg.serve.schemas import Query


def test_base64_is_read_in_its_usual_forms() -> None:
    image = encoded("white", (6, 5), "BMP")
    text = base64.b64encode(image).decode()
    assert "/" in text and text.endswith("=")
    url_safe = base64.urlsafe_b64encode(image).decode()
    forms = [text, base64.encodebytes(image).decode(), url_safe, url_safe.rstrip("="), text.rstrip("=") + "\n"]
    forms += [f"data:image/bmp;base64,{base64.encodebytes(image).decode()}", "\r\n".join(text)]
    assert {Query(image=form, phrases=["it"]).image for form in forms} == {image}


@pytest.mark.parametrize("text", ["a", "aaaa=aaa", "aa*a", "aaé="])
def test_other_text_is_not_base64(text: str) -> None:
    with pytest.raises(ValidationError, match="not base64"):
        Query(image=text, phrases=["it"])


@pytest.mark.parametrize("wrong", [2, -0.1, "0.5", "high", True, [0.5], 10**400, float("nan"), None])
def test_min_score_is_a_number_from_0_to_1_or_auto(wrong: Any) -> None:
    with pytest.raises(ValidationError, match="a number from 0 to 1"):
        Query(image=b"", phrases=["it"], min_score=wrong)


def test_min_score_nan_is_rejected(client: TestClient) -> None:
    body = b'{"image": "", "phrases": "it", "min_score": NaN}'
    assert client.post("/v1/ground", content=body, headers=JSON).status_code == 422


def test_phrases_are_read_in_the_forms_that_clients_send(client: TestClient) -> None:
    image = encoded()

    def form(field: str, *values: str) -> Any:
        return client.post("/v1/ground", files={"image": image}, data={field: list(values)})

    for response in (
        form("phrases", "it", "a dog"),
        form("phrases[]", "it", "a dog"),
        form("phrases", '["it", "a dog"]'),
    ):
        assert [each["phrase"] for each in response.json()["results"]] == ["it", "a dog"], response.text
    assert client.post("/v1/ground", json=as_json(image, "it")).json() == form("phrases", "it").json()
    for literal in ("[it]", "[1, 2]", "[]"):
        assert form("phrases", literal).json()["results"][0]["phrase"] == literal
    assert "once per phrase" in form("phrases", "['it', 'a dog']").json()["error"]
    assert "at most 32 items" in form("phrases", str(["it"] * 33).replace("'", '"')).json()["error"]
