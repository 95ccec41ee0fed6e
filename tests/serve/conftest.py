"""Fixtures of the server's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from serving import client_of

from epmvg.inference.predictor import Predictor
from epmvg.models.grounder import Grounder


@pytest.fixture
def predictor(tiny: Grounder) -> Predictor:
    return Predictor(tiny)


@pytest.fixture
def client(predictor: Predictor) -> Iterator[TestClient]:
    with client_of(predictor) as opened:
        yield opened
