"""Training transforms: crops keep their boxes, flips keep phrases true, pixels are those of the published pipeline."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from epmvg.config.settings import AugmentSettings
from epmvg.core.boxes import to_xyxy
from epmvg.core.geometry import Letterbox
from epmvg.core.images import ImageFile, open_image
from epmvg.data.transforms import ImageTransform, apply_transform, draw_transform, largest_side

STRONG = AugmentSettings(horizontal_flip=0.5, crop=1.0, min_crop=0.4, scale=0.5, color_jitter=1.0, translate=1.0)
TRANSVG = AugmentSettings(horizontal_flip=0.5, crop=0.5, scale=0.7, color_jitter=0.8, translate=1.0, recipe="transvg")


def draw_image(width: int, height: int) -> Image.Image:
    """An image with broad colors and fine detail."""
    random = np.random.default_rng(0)
    broad = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), 3)
    grain = random.normal(0, 6, (height, width, 1))
    return Image.fromarray((np.asarray(broad) + grain).clip(0, 255).astype(np.uint8))


def test_evaluation_transform_is_the_published_one(shared: Path) -> None:
    """Pixels and mask are TransVG's; ours is before normalization, with the mean color as padding."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    for case in torch.load(shared / "parity" / "data_pipeline.pt", weights_only=True)["eval_transform"]:
        image = Image.fromarray(case["input_u8"].numpy())
        letterbox = Letterbox.fit(*image.size, 640)
        pixels, mask = letterbox.pad(letterbox.resize(image))
        assert np.array_equal(mask[::4, ::4], case["mask"].bool().numpy())
        assert mask.sum() == case["mask_sum"]
        ours = (torch.from_numpy(pixels) - mean) / std
        torch.testing.assert_close(ours[:, ::8, ::8], case["img_s8"], atol=1e-5, rtol=0)


@given(st.integers(0, 10_000), st.sampled_from([STRONG, TRANSVG.model_copy(update={"crop": 1.0})]), st.integers(1, 4))
def test_training_transforms_keep_their_boxes(seed: int, augment: AugmentSettings, phrases: int) -> None:
    """A transform shows at least `min_visible` of each box, inside the input."""
    random = np.random.default_rng(seed)
    width, height = (int(v) for v in random.integers(40, 300, 2))
    corners = random.uniform(0, 1, (phrases, 2, 2))
    low, high = corners.min(1) * 0.8, corners.max(1) * 0.8 + 0.2
    boxes = [(x0 * width, y0 * height, x1 * width, y1 * height) for (x0, y0), (x1, y1) in zip(low, high, strict=True)]
    transform = draw_transform((width, height), 128, boxes, ["a thing"] * phrases, augment, random)
    left, top, right, bottom = transform.content
    assert 0 <= left < right <= 128 and 0 <= top < bottom <= 128
    assert int((~transform.mask()).sum()) == (right - left) * (bottom - top)
    for box in boxes:
        x0, y0, x1, y1 = (to_xyxy(transform.letterbox.to_input(torch.tensor(box))) * 128).tolist()
        seen = max(0.0, min(x1, right) - max(x0, left)) * max(0.0, min(y1, bottom) - max(y0, top))
        assert seen / ((x1 - x0) * (y1 - y0)) >= augment.min_visible - 0.1  # whole pixels of the input


def test_phrases_by_place_are_never_cropped() -> None:
    for seed in range(30):
        random = np.random.default_rng(seed)
        transform = draw_transform((100, 80), 64, [(10, 10, 30, 30)], ["the cup on the left"], STRONG, random)
        assert transform.crop == (0, 0, 100, 80)


def test_a_transformed_object_lies_in_its_box() -> None:
    """The pixels of a white object on black stay in the transformed box."""
    image = Image.new("RGB", (120, 90))
    image.paste((255, 255, 255), (30, 20, 80, 70))
    quiet = AugmentSettings(horizontal_flip=0.5, crop=1.0, min_crop=0.6, scale=0.6, translate=1.0, color_jitter=0)
    for seed in range(20):
        transform = draw_transform((120, 90), 128, [(30, 20, 80, 70)], ["it"], quiet, np.random.default_rng(seed))
        white = (apply_transform(image, transform).min(0).values > 0.5).nonzero().float()
        box = (to_xyxy(transform.letterbox.to_input(torch.tensor([30.0, 20, 80, 70]))) * 128).tolist()
        left, top, right, bottom = transform.content
        seen = torch.tensor([max(box[0], left), max(box[1], top), min(box[2], right), min(box[3], bottom)])
        low, high = white.min(0).values, white.max(0).values + 1
        found = torch.tensor([low[1], low[0], high[1], high[0]])
        torch.testing.assert_close(found, seen, atol=1.5, rtol=0)


def test_published_sizes_and_crops() -> None:
    """Longer sides step by 32; crops measure 384 to 600 in an image whose shorter side is 400, 500 or 600."""
    random = np.random.default_rng(0)
    sides, shares = set(), []
    for _ in range(300):
        transform = draw_transform(
            (1200, 900), 640, [(500, 400, 600, 500)], ["it"], TRANSVG.model_copy(update={"crop": 1.0}), random
        )
        sides.add(max(transform.size))
        shares.append((transform.crop[2] - transform.crop[0]) / 900)
        assert transform.color_jitter == () or sorted(name for name, _ in transform.color_jitter) == [
            "Brightness",
            "Color",
            "Contrast",
        ]
        assert all(0.6 <= factor <= 1.4 for _, factor in transform.color_jitter)
    assert sides == {448, 480, 512, 544, 576, 608, 640}
    assert 384 / 600 - 0.01 <= min(shares) < 0.7 and 1.2 < max(shares) <= 4 / 3
    assert {max(draw_transform((90, 60), 320, [], [], TRANSVG, random).size) for _ in range(99)} == {
        s // 2 for s in sides
    }


def test_crops_clip_boxes_as_published(shared: Path) -> None:
    """A published crop is (top, left, height, width)."""
    cases = torch.load(shared / "parity" / "data_pipeline.pt", weights_only=True)["crop_fn"]
    for box, (top, left, height, width), expected in cases:
        letterbox = Letterbox(1000, 1000, 1000, 1.0, 1.0, -left, -top)
        transform = ImageTransform(letterbox, (left, top, left + width, top + height), (width, height))
        boxes = transform.boxes(torch.tensor([box], dtype=torch.float64))
        torch.testing.assert_close(to_xyxy(boxes)[0].float() * 1000, torch.as_tensor(expected).float())


def in_steps(image: Image.Image, transform: ImageTransform) -> Image.Image:
    """Apply a transform's crop, size, jitter and flip step by step with Pillow."""
    x0, y0, x1, y1 = transform.crop
    width, height = transform.letterbox.width, transform.letterbox.height
    if transform.letterbox.flip:
        x0, x1 = width - x1, width - x0
    across, down = image.width / width, image.height / height
    image = image.crop((round(x0 * across), round(y0 * down), round(x1 * across), round(y1 * down)))
    image = image.resize(transform.size, Image.Resampling.BILINEAR)
    for name, factor in transform.color_jitter:
        image = getattr(ImageEnhance, name)(image).enhance(factor)
    return ImageOps.mirror(image) if transform.letterbox.flip else image


def test_transforms_agree_with_pillow() -> None:
    image = draw_image(400, 300)
    for seed in range(12):
        random = np.random.default_rng(seed)
        transform = draw_transform(image.size, 256, [(100, 100, 200, 180)], ["it"], STRONG, random)
        left, top, right, bottom = transform.content
        expected = torch.from_numpy(np.array(in_steps(image, transform))).permute(2, 0, 1)
        apart = (apply_transform(image, transform)[:, top:bottom, left:right] * 255 - expected).abs()
        assert apart.max() < 6 and apart.mean() < 2  # Pillow cuts to whole levels after each of three enhancers


def test_transforming_into_a_given_tensor() -> None:
    image, out = draw_image(90, 60), torch.full((3, 64, 64), math.nan)
    for augment in (STRONG, TRANSVG):
        transform = draw_transform(image.size, 64, [(9, 9, 80, 50)], ["it"], augment, np.random.default_rng(1))
        apply_transform(image, transform, out)
        assert torch.equal(out, apply_transform(image, transform))


def test_an_image_is_decoded_as_finely_as_its_transform_needs(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = draw_image(900, 1600).resize((1600, 900))
    image.save(tmp_path / "turned.jpg", quality=95, exif=exif.tobytes())
    whole = open_image(tmp_path / "turned.jpg")
    for seed in range(8):
        with ImageFile(tmp_path / "turned.jpg") as photo:
            assert photo.size == whole.size == (900, 1600)
            augment = STRONG.model_copy(update={"color_jitter": 0.0})
            random = np.random.default_rng(seed)
            transform = draw_transform(photo.size, 320, [(300, 300, 600, 900)], ["it"], augment, random)
            reduced = photo.decode(transform.min_size)
        assert all(side >= need for side, need in zip(reduced.size, transform.min_size, strict=True))
        assert reduced.width < whole.width
        apart = (apply_transform(reduced, transform) - apply_transform(whole, transform)).abs() * 255
        assert apart.mean() < 3


@given(st.integers(0, 10_000), st.sampled_from([STRONG, *(TRANSVG.model_copy(update={"crop": p}) for p in (0, 1))]))
def test_the_largest_side_leaves_all_detail(seed: int, augment: AugmentSettings) -> None:
    """Of an image of any aspect, for any crop; so a cached image is not enlarged."""
    random = np.random.default_rng(seed)
    size = random.integers(400, 1600, 2)
    transform = draw_transform((int(size[0]), int(size[1])), 128, np.zeros((0, 4)), [], augment, random)
    side, is_shorter = largest_side(augment, 128)
    kept = size * min(1, side / (size.min() if is_shorter else size.max()))
    assert (transform.min_size <= kept * 1.02 + 1).all()
