"""Small valid images for schemathesis (test_fuzz.py sends damaged ones)."""

from __future__ import annotations

import base64
import io
from typing import Any

import schemathesis
from hypothesis import strategies as st
from PIL import Image
from schemathesis.core.failures import AcceptedNegativeData, Failure


def _image(side: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, 24), "teal").save(out, "PNG")
    return out.getvalue()


images = st.integers(1, 30).map(_image)
schemathesis.openapi.format("binary", images)
schemathesis.openapi.format("byte", images.map(lambda image: base64.b64encode(image).decode()))


@schemathesis.hook
def filter_failure(
    context: schemathesis.HookContext, failure: Failure, case: schemathesis.Case[Any], response: schemathesis.Response
) -> bool:
    """Every value of a form is text: a phrase of a wrong type is a phrase like any other."""
    return not (isinstance(failure, AcceptedNegativeData) and case.media_type == "multipart/form-data")
