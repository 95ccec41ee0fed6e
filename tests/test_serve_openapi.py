"""The server against its own OpenAPI: Schemathesis draws requests from it, valid and invalid ones."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from serving import serving

from epmvg.models.factory import create_model
from epmvg.predict import Predictor

POSTS = ["/v1/ground", "/v1/ground/batch"]
GETS = ["/healthz", "/metrics", "/samples"]
# That a string is the base64 of a picture no schema can say: of valid requests many are refused with 422.
UNKNOWABLE = [positive_data_acceptance]
# In a form the number 5 and a list of the text "5" are the same bytes: not all that is invalid looks so.
UNKNOWABLE_OF_FORMS = [*UNKNOWABLE, negative_data_rejection]
REFUSALS = {400, 401, 405, 413, 415, 422}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    torch.manual_seed(0)
    with serving(Predictor(create_model("tiny-resnet").eval())) as opened:
        yield opened


@st.composite
def with_a_picture(draw: st.DrawFn, case: Any) -> Any:
    """Put a real picture where a valid request has a string for one, more often than not."""
    out = io.BytesIO()
    Image.new("RGB", (40, 30), draw(st.sampled_from(["teal", "gold"]))).save(
        out, draw(st.sampled_from(["PNG", "JPEG"]))
    )
    picture = out.getvalue()
    if case.media_type == "application/json":
        for question in case.body.get("questions", [case.body]):
            if draw(st.integers(0, 3)):
                question["image"] = base64.b64encode(picture).decode()
    elif draw(st.integers(0, 3)):
        case.body["image"] = picture
    return case


@pytest.mark.parametrize("examples", [5, pytest.param(300, marks=pytest.mark.slow)])
def test_answers_conform_and_none_is_a_5xx(address: str, examples: int) -> None:
    api = schemathesis.openapi.from_url(f"{address}/openapi.json")
    seen: dict[str, set[int]] = {}

    def check(case: Any) -> None:
        form = case.media_type == "multipart/form-data"
        answer = case.call_and_validate(excluded_checks=UNKNOWABLE_OF_FORMS if form else UNKNOWABLE)
        seen.setdefault(case.path, set()).add(answer.status_code)

    quiet = settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    for path in POSTS:
        valid = api[path]["POST"].as_strategy(generation_mode=GenerationMode.POSITIVE)
        quiet(given(case=valid.flatmap(with_a_picture))(check))()
        quiet(given(case=api[path]["POST"].as_strategy(generation_mode=GenerationMode.NEGATIVE))(check))()
        assert 200 in seen[path] and seen[path] - {200} and seen[path] <= {200} | REFUSALS
    for path in GETS:
        quiet(given(case=api[path]["GET"].as_strategy(generation_mode=GenerationMode.POSITIVE))(check))()
        assert seen[path] == {200}
