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
def often_answerable(draw: st.DrawFn, case: Any) -> Any:
    """Put a picture and phrases into most valid requests, whose strings are neither."""
    questions = case.body.get("questions", [case.body])
    for question in questions:
        if draw(st.integers(0, 3)) < 3:
            out = io.BytesIO()
            colour, kind = draw(st.sampled_from(["teal", "gold"])), draw(st.sampled_from(["PNG", "JPEG"]))
            Image.new("RGB", (40, 30), colour).save(out, kind)
            form = case.media_type == "multipart/form-data"
            question["image"] = out.getvalue() if form else base64.b64encode(out.getvalue()).decode()
            question["phrases"] = draw(st.lists(st.sampled_from(["it", "a dog", "<b>"]), min_size=1, max_size=3))
    return case


@pytest.mark.parametrize("examples", [6, pytest.param(300, marks=pytest.mark.slow)])
def test_answers_conform_and_none_is_a_5xx(address: str, examples: int) -> None:
    api = schemathesis.openapi.from_url(f"{address}/openapi.json")
    seen: dict[str, set[int]] = {}

    def check(case: Any) -> None:
        form = case.media_type == "multipart/form-data"
        answer = case.call_and_validate(excluded_checks=UNKNOWABLE_OF_FORMS if form else UNKNOWABLE)
        seen.setdefault(case.path, set()).add(answer.status_code)

    quiet = settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    for path in POSTS:
        valid = api[path]["POST"].as_strategy(generation_mode=GenerationMode.POSITIVE)
        quiet(given(case=valid.flatmap(often_answerable))(check))()
        quiet(given(case=api[path]["POST"].as_strategy(generation_mode=GenerationMode.NEGATIVE))(check))()
        assert 200 in seen[path] and seen[path] - {200} and seen[path] <= {200} | REFUSALS
    for path in GETS:
        quiet(given(case=api[path]["GET"].as_strategy(generation_mode=GenerationMode.POSITIVE))(check))()
        assert seen[path] == {200}
