"""Views: the published evaluation transform, crops that keep their target, flips that keep phrases true."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from epmvg.core.boxes import to_xyxy
from epmvg.core.images import ImageFile, open_image
from epmvg.core.types import InputError
from epmvg.data.transforms import Augment, names_place, pad_of, render, sides_are_clear, swap_sides, training_view
from epmvg.data.views import View, evaluation_view, image_of, laid_rectangle, lay

STRONG = Augment(horizontal_flip=0.5, crop=1.0, min_crop=0.4, scale=0.5, color_jitter=1.0, translate=1.0)
TRANSVG = Augment(horizontal_flip=0.5, crop=0.5, scale=0.7, color_jitter=0.8, translate=1.0, recipe="transvg")


def photo_like(width: int, height: int) -> Image.Image:
    """A picture with broad colours and fine detail."""
    random = np.random.default_rng(0)
    broad = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), 3)
    grain = random.normal(0, 6, (height, width, 1))
    return Image.fromarray((np.asarray(broad) + grain).clip(0, 255).astype(np.uint8))


def test_published_evaluation_view(shared: Path) -> None:
    """Pixels, padding and place on the canvas are TransVG's; ours is before normalisation and colours the padding."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    for case in torch.load(shared / "parity" / "data_pipeline.pt", weights_only=True)["eval_transform"]:
        picture = Image.fromarray(case["input_u8"].numpy())
        view = evaluation_view(picture.size, 640)
        image_mask = pad_of(view)
        assert torch.equal(image_mask[::4, ::4], case["mask"].bool())
        assert int(image_mask.sum()) == case["mask_sum"]
        image_size, without_torch = image_of(lay(picture, view), view)
        assert np.array_equal(without_torch, image_mask)
        ours = (torch.from_numpy(image_size) - mean) / std
        torch.testing.assert_close(ours[:, ::8, ::8], case["img_s8"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("the man on the left", "the man on the right"),
        ("Leftmost cup", "Rightmost cup"),
        ("RIGHT side", "LEFT side"),
        ("left-hand dog", "right-hand dog"),
        ("right-most lefthand leftside rightest", "left-most righthand rightside leftest"),
        ("facing leftwards", "facing rightwards"),
        ("bright upright copyright leftovers", "bright upright copyright leftovers"),
        ("left of the right one", "right of the left one"),
    ],
)
def test_sides_swap_as_words(before: str, after: str) -> None:
    assert swap_sides(before) == after
    assert swap_sides(after) == before


@pytest.mark.parametrize(
    "phrase",
    [
        *("the man right behind the car", "the one right in front of us", "sitting right next to the dog"),
        *("the last slice left on the plate", "the only piece left", "a dog left behind", "what is left"),
        *("all right", "the right way up", "the guy walking right behind her", "cup right by the fork"),
    ],
)
def test_a_picture_is_not_mirrored_where_a_word_may_be_no_side(phrase: str) -> None:
    assert swap_sides(phrase) == phrase
    for seed in range(8):
        random = np.random.default_rng(seed)
        phrases = ["the cup on the left", phrase]
        assert not training_view(
            (60, 40), 60, [(1, 2, 9, 9)] * 2, phrases, Augment(horizontal_flip=1.0), random
        ).letterbox.flip


@pytest.mark.parametrize(
    ("phrase", "mirrored"),
    [
        ("man on right behind the car", "man on left behind the car"),
        ("bottom right next to the cup", "bottom left next to the cup"),
        ("her right arm", "her left arm"),
        ("zebra left", "zebra right"),
        ("the man left of the car", "the man right of the car"),
        ("second from right", "second from left"),
        ("left guy in front", "right guy in front"),
        ("dog looking right", "dog looking left"),
    ],
)
def test_sides_are_mirrored_with_their_picture(phrase: str, mirrored: str) -> None:
    assert swap_sides(phrase) == mirrored
    view = training_view((60, 40), 60, [(1, 2, 9, 9)], [phrase], Augment(horizontal_flip=1.0), np.random.default_rng(0))
    assert view.letterbox.flip


def test_most_real_phrases_with_a_side_can_be_mirrored(shared: Path) -> None:
    lines = (shared / "real_grounding" / "annotations.jsonl").read_text(encoding="utf-8").splitlines()
    sided = [phrase for line in lines if re.search(r"\b(left|right)\b", phrase := json.loads(line)["phrase"])]
    assert len(sided) > 500 and sum(map(sides_are_clear, sided)) > 0.95 * len(sided)


def test_places_are_words() -> None:
    for phrase in ("top left corner", "the middle one", "rightmost", "left-hand cup", "uppermost", "Leftside guy"):
        assert names_place(phrase)
    for phrase in ("a laptop that stops in bright light", "leftovers", "middleweight boxer", "bottomless"):
        assert not names_place(phrase)


@given(st.integers(0, 10_000), st.sampled_from([STRONG, replace(TRANSVG, crop=1.0)]), st.integers(1, 4))
def test_training_views_keep_their_targets(seed: int, augment: Augment, phrases: int) -> None:
    """A shared view shows at least `keep` of each box, and every box lands inside the canvas."""
    random = np.random.default_rng(seed)
    width, height = (int(v) for v in random.integers(40, 300, 2))
    corners = random.uniform(0, 1, (phrases, 2, 2))
    low, high = corners.min(1) * 0.8, corners.max(1) * 0.8 + 0.2
    boxes = [(x0 * width, y0 * height, x1 * width, y1 * height) for (x0, y0), (x1, y1) in zip(low, high, strict=True)]
    view = training_view((width, height), 128, boxes, ["a thing"] * phrases, augment, random)
    left, top, right, bottom = laid_rectangle(view)
    assert 0 <= left < right <= 128 and 0 <= top < bottom <= 128
    assert int((~pad_of(view)).sum()) == (right - left) * (bottom - top)
    for box in boxes:
        x0, y0, x1, y1 = (to_xyxy(view.letterbox.to_canvas(torch.tensor(box))) * 128).tolist()
        seen = max(0.0, min(x1, right) - max(x0, left)) * max(0.0, min(y1, bottom) - max(y0, top))
        assert seen / ((x1 - x0) * (y1 - y0)) >= augment.min_visible - 0.1  # whole pixels on the canvas


def test_phrases_by_place_are_never_cropped() -> None:
    for seed in range(30):
        random = np.random.default_rng(seed)
        view = training_view((100, 80), 64, [(10, 10, 30, 30)], ["the cup on the left"], STRONG, random)
        assert view.crop == (0, 0, 100, 80)


def test_a_rendered_target_lies_in_its_box() -> None:
    """The pixels of a white target on black stay where the geometry says, through flip, crop, scale and move."""
    picture = Image.new("RGB", (120, 90))
    picture.paste((255, 255, 255), (30, 20, 80, 70))
    quiet = Augment(horizontal_flip=0.5, crop=1.0, min_crop=0.6, scale=0.6, translate=1.0)
    for seed in range(20):
        view = training_view((120, 90), 128, [(30, 20, 80, 70)], ["it"], quiet, np.random.default_rng(seed))
        white = (render(picture, view).min(0).values > 0.5).nonzero().float()
        box = (to_xyxy(view.letterbox.to_canvas(torch.tensor([30.0, 20, 80, 70]))) * 128).tolist()
        left, top, right, bottom = laid_rectangle(view)
        seen = torch.tensor([max(box[0], left), max(box[1], top), min(box[2], right), min(box[3], bottom)])
        low, high = white.min(0).values, white.max(0).values + 1
        found = torch.tensor([low[1], low[0], high[1], high[0]])
        torch.testing.assert_close(found, seen, atol=1.5, rtol=0)


def test_published_sizes_and_crops() -> None:
    """Longer sides step by 32; crops measure 384 to 600 in a picture whose shorter side is 400, 500 or 600."""
    random = np.random.default_rng(0)
    sides, shares = set(), []
    for _ in range(300):
        view = training_view((1200, 900), 640, [(500, 400, 600, 500)], ["it"], replace(TRANSVG, crop=1.0), random)
        sides.add(max(view.size))
        shares.append((view.crop[2] - view.crop[0]) / 900)
        assert view.jitter == () or sorted(name for name, _ in view.jitter) == ["Brightness", "Color", "Contrast"]
        assert all(0.6 <= factor <= 1.4 for _, factor in view.jitter)
    assert sides == {448, 480, 512, 544, 576, 608, 640}
    assert 384 / 600 - 0.01 <= min(shares) < 0.7 and 1.2 < max(shares) <= 4 / 3
    assert {max(training_view((90, 60), 320, [], [], TRANSVG, random).size) for _ in range(99)} == {
        s // 2 for s in sides
    }


def test_published_crops_cut_boxes(shared: Path) -> None:
    """A box is moved and clipped as published; a crop there is (top, left, height, width)."""
    facts = torch.load(shared / "parity" / "data_pipeline.pt", weights_only=True)["crop_fn"]
    for box, (top, left, height, width), expected in facts:
        x0, y0, x1, y1 = box
        cut = torch.tensor([x0 - left, y0 - top, x1 - left, y1 - top]).clamp(min=0)
        cut = torch.minimum(cut, torch.tensor([width, height, width, height]).float())
        torch.testing.assert_close(cut, expected)


def in_steps(picture: Image.Image, view: View) -> Image.Image:
    """A view's crop, size, jitter and flip, step by step with Pillow."""
    x0, y0, x1, y1 = view.crop
    width, height = view.letterbox.width, view.letterbox.height
    if view.letterbox.flip:
        x0, x1 = width - x1, width - x0
    across, down = picture.width / width, picture.height / height
    picture = picture.crop((round(x0 * across), round(y0 * down), round(x1 * across), round(y1 * down)))
    picture = picture.resize(view.size, Image.Resampling.BILINEAR)
    for name, factor in view.jitter:
        picture = getattr(ImageEnhance, name)(picture).enhance(factor)
    return ImageOps.mirror(picture) if view.letterbox.flip else picture


def test_quick_rendering_agrees_with_pillow() -> None:
    picture = photo_like(400, 300)
    for seed in range(12):
        random = np.random.default_rng(seed)
        view = training_view(picture.size, 256, [(100, 100, 200, 180)], ["it"], STRONG, random)
        left, top, right, bottom = laid_rectangle(view)
        expected = torch.from_numpy(np.array(in_steps(picture, view))).permute(2, 0, 1)
        apart = (render(picture, view)[:, top:bottom, left:right] * 255 - expected).abs()
        assert apart.max() < 6 and apart.mean() < 2  # Pillow cuts to whole levels after each of three enhancers


def test_rendering_on_a_given_canvas() -> None:
    picture, out = photo_like(90, 60), torch.full((3, 64, 64), math.nan)
    for augment in (STRONG, TRANSVG):
        view = training_view(picture.size, 64, [(9, 9, 80, 50)], ["it"], augment, np.random.default_rng(1))
        render(picture, view, out)
        assert torch.equal(out, render(picture, view))


def bytes_of(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    (tmp_path / "turned.jpg").write_bytes(bytes_of(Image.new("RGB", (40, 20)), "JPEG", exif=exif.tobytes()))
    assert open_image(tmp_path / "turned.jpg").size == (20, 40)


def test_a_photo_is_decoded_as_fine_as_its_view_needs(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = photo_like(900, 1600).resize((1600, 900))
    picture.save(tmp_path / "turned.jpg", quality=95, exif=exif.tobytes())
    whole = open_image(tmp_path / "turned.jpg")
    for seed in range(8):
        with ImageFile(tmp_path / "turned.jpg") as photo:
            assert photo.size == whole.size == (900, 1600)
            augment = replace(STRONG, color_jitter=0.0)
            random = np.random.default_rng(seed)
            view = training_view(photo.size, 320, [(300, 300, 600, 900)], ["it"], augment, random)
            reduced = photo.decode(view.needs)
        assert all(side >= need for side, need in zip(reduced.size, view.needs, strict=True))
        assert reduced.width < whole.width
        apart = (render(reduced, view) - render(whole, view)).abs() * 255
        assert apart.mean() < 3


def test_an_animation_is_its_first_picture(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "green", "blue")]
    for kind in ("gif", "png", "webp"):
        frames[0].save(tmp_path / f"moving.{kind}", save_all=True, append_images=frames[1:])
        red, green, blue = open_image(tmp_path / f"moving.{kind}").getpixel((4, 3))  # type: ignore[misc]
        assert red > 240 and green < 20 and blue < 20


def test_printing_colours_become_rgb(tmp_path: Path) -> None:
    (tmp_path / "print.jpg").write_bytes(bytes_of(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    red, green, _ = open_image(tmp_path / "print.jpg").getpixel((4, 4))  # type: ignore[misc]
    assert red > 200 and green < 50


def test_sixteen_bits_in_a_png(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 5), 40_000, np.uint16)).save(tmp_path / "deep.png")
    assert open_image(tmp_path / "deep.png").getpixel((0, 0)) == (156, 156, 156)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damaged_photos_open_or_are_named(tmp_path: Path, kind: str) -> None:
    """Whatever the damage, it is a picture or an InputError with the file's name."""
    whole = bytes_of(photo_like(40, 30), kind)
    random = np.random.default_rng(0)
    file = tmp_path / "photo.bin"
    for number in range(60):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 4):
            damaged[place] = random.integers(256)
        file.write_bytes(damaged[: random.integers(len(whole))] if number % 2 else damaged)
        try:
            assert open_image(file).mode == "RGB"
        except InputError as error:
            assert "photo.bin" in str(error)


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
