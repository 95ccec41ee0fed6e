"""Views: the published evaluation transform, crops that keep their target, flips that keep phrases true."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from epmvg.boxes import to_xyxy
from epmvg.data.transforms import (
    Augment,
    evaluation_view,
    laid_rectangle,
    names_place,
    open_image,
    pad_of,
    render,
    swap_sides,
    training_view,
)
from epmvg.types import InputError

STRONG = Augment(flip=0.5, crop=1.0, crop_min=0.4, scale=0.5, jitter=1.0, move=1.0)


def test_published_evaluation_view(shared: Path) -> None:
    """Pixels, padding and place on the canvas are TransVG's; ours is before normalisation and colours the padding."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    for case in torch.load(shared / "parity" / "data_pipeline.pt", weights_only=True)["eval_transform"]:
        picture = Image.fromarray(case["input_u8"].numpy())
        view = evaluation_view(picture.size, 640)
        pad = pad_of(view)
        assert torch.equal(pad[::4, ::4], case["mask"].bool())
        assert int(pad.sum()) == case["mask_sum"]
        ours = (render(picture, view) - mean) / std
        torch.testing.assert_close(ours[:, ::8, ::8], case["img_s8"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("the man on the left", "the man on the right"),
        ("Leftmost cup", "Rightmost cup"),
        ("RIGHT side", "LEFT side"),
        ("left-hand dog", "right-hand dog"),
        ("bright upright copyright leftovers", "bright upright copyright leftovers"),
        ("left of the right one", "right of the left one"),
    ],
)
def test_sides_swap_as_words(before: str, after: str) -> None:
    assert swap_sides(before) == after
    assert swap_sides(after) == before


def test_places_are_words() -> None:
    assert names_place("top left corner") and names_place("the middle one") and names_place("rightmost")
    assert not names_place("a laptop that stops in bright light")


@given(st.integers(0, 10_000))
def test_training_views_keep_their_targets(seed: int) -> None:
    """Whatever is kept shows at least `keep` of its box, and every box lands inside the canvas."""
    random = np.random.default_rng(seed)
    width, height = (int(v) for v in random.integers(40, 300, 2))
    x0, y0 = random.uniform(0, width * 0.7), random.uniform(0, height * 0.7)
    box = (x0, y0, random.uniform(x0 + 5, width), random.uniform(y0 + 5, height))
    view, kept = training_view((width, height), 128, [box], ["a thing"], STRONG, random)
    assert kept == [0]
    x0, y0, x1, y1 = (to_xyxy(view.letterbox.to_canvas(torch.tensor(box))) * 128).tolist()
    content = ~pad_of(view)
    rows, columns = content.any(1).nonzero(), content.any(0).nonzero()
    left, right = columns[0].item(), columns[-1].item() + 1
    top, bottom = rows[0].item(), rows[-1].item() + 1
    seen = max(0.0, min(x1, right) - max(x0, left)) * max(0.0, min(y1, bottom) - max(y0, top))
    assert seen / ((x1 - x0) * (y1 - y0)) >= STRONG.keep - 0.1  # whole pixels on the canvas


def test_phrases_by_place_are_never_cropped() -> None:
    for seed in range(30):
        random = np.random.default_rng(seed)
        view, _ = training_view((100, 80), 64, [(10, 10, 30, 30)], ["the cup on the left"], STRONG, random)
        assert view.crop == (0, 0, 100, 80)


def test_a_rendered_target_lies_in_its_box() -> None:
    """The pixels of a white target on black stay where the geometry says, through flip, crop, scale and move."""
    picture = Image.new("RGB", (120, 90))
    picture.paste((255, 255, 255), (30, 20, 80, 70))
    quiet = Augment(flip=0.5, crop=1.0, crop_min=0.6, scale=0.6, move=1.0)
    for seed in range(20):
        view, kept = training_view((120, 90), 128, [(30, 20, 80, 70)], ["it"], quiet, np.random.default_rng(seed))
        assert kept == [0]
        white = (render(picture, view).min(0).values > 0.5).nonzero().float()
        box = (to_xyxy(view.letterbox.to_canvas(torch.tensor([30.0, 20, 80, 70]))) * 128).tolist()
        left, top, right, bottom = laid_rectangle(view)
        seen = torch.tensor([max(box[0], left), max(box[1], top), min(box[2], right), min(box[3], bottom)])
        low, high = white.min(0).values, white.max(0).values + 1
        found = torch.tensor([low[1], low[0], high[1], high[0]])
        torch.testing.assert_close(found, seen, atol=1.5, rtol=0)


def bytes_of(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    (tmp_path / "turned.jpg").write_bytes(bytes_of(Image.new("RGB", (40, 20)), "JPEG", exif=exif.tobytes()))
    assert open_image(tmp_path / "turned.jpg").size == (20, 40)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "I;16", "1"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.new("I;16", (9, 7), 40_000) if mode == "I;16" else Image.new(mode, (9, 7))
    image.save(tmp_path / "image.tiff")
    opened = open_image(tmp_path / "image.tiff")
    assert (opened.mode, opened.size) == ("RGB", (9, 7))
    if mode == "I;16":
        assert opened.getpixel((0, 0)) == (156, 156, 156)


@pytest.mark.parametrize("fault", ["missing", "empty", "truncated", "text", "huge"])
def test_unusable_photos_are_named(tmp_path: Path, fault: str) -> None:
    file = tmp_path / "photo.jpg"
    whole = bytes_of(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")
    content = {"empty": b"", "truncated": whole[: len(whole) // 2], "text": b"not a picture"}
    if fault in content:
        file.write_bytes(content[fault])
    if fault == "huge":
        file.write_bytes(bytes_of(Image.new("1", (20_000, 20_000)), "PNG"))
    with pytest.raises(InputError, match=r"photo\.jpg"):
        open_image(file)
