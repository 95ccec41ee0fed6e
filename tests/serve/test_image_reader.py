"""Tests of decoding uploaded images."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image
from serving import client_of, encoded, metric, post_form

from epmvg.inference.predictor import Predictor
from epmvg.serve.images import FORMATS, ImageReader
from epmvg.serve.limits import Limits


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_images_are_held_at_the_models_size(kind: str) -> None:
    """An image of 6 megapixels takes kilobytes while it waits; its own size is kept for the boxes."""
    image, _ = ImageReader(Limits(), 64).decode(encoded(size=(3000, 2000), kind=kind))
    assert max(image.pixels.size) == 64 and image.size == (3000, 2000)


def test_formats_are_checked_by_the_call_that_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    formats: list[Any] = []
    real_open = Image.open

    def spy(*args: Any, **kwargs: Any) -> Any:
        formats.append(kwargs.get("formats"))
        return real_open(*args, **kwargs)

    monkeypatch.setattr(Image, "open", spy)
    ImageReader(Limits(), 64).decode(encoded())
    assert formats == [FORMATS]


def test_cached_images_stay_within_the_limit(predictor: Predictor) -> None:
    with client_of(predictor, cache_bytes=2 * 3 * 64 * 48) as client:
        for color in ("teal", "navy", "gold", "teal", "gold"):
            post_form(client, encoded(color), ["it"])
        assert metric(client, 'epmvg_images_total{cached="yes"}') == 1
