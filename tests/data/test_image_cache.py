"""Image cache: cached images equal decoded ones, the folder stays within its limit, and damaged files are replaced."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from epmvg.config.settings import AugmentSettings
from epmvg.core.images import ImageFile
from epmvg.core.types import InputError
from epmvg.data.image_cache import ImageCache
from epmvg.data.loader import GroundingLoader
from epmvg.data.registry import open_samples


def write_image(file: Path, seed: int, size: tuple[int, int] = (200, 100), turned: bool = False) -> Path:
    noise = np.random.default_rng(seed).integers(0, 256, (5, 10, 3), dtype=np.uint8)
    exif = Image.Exif()
    if turned:
        exif[0x0112] = 6
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(file, quality=95, exif=exif.tobytes())
    return file


def decode(cache: ImageCache, path: Path) -> tuple[Image.Image, tuple[int, int]]:
    with cache.open(path) as image:
        return image.decode(), image.size


@pytest.mark.parametrize("turned", [False, True])
def test_the_second_time_is_like_the_first(tmp_path: Path, turned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_image(tmp_path / "photo.jpg", 0, turned=turned)
    cache = ImageCache(tmp_path / "images.sqlite", 1.0, side=80)
    first, size = decode(cache, file)
    monkeypatch.setattr(ImageFile, "decode", lambda *_: pytest.fail("decoded again"))
    second, same_size = decode(cache, file)
    assert first.tobytes() == second.tobytes() and size == same_size == ((100, 200) if turned else (200, 100))
    assert max(first.size) == 80


def test_a_changed_image_is_decoded_again(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "images.sqlite", 1.0, side=80)
    before, _ = decode(cache, write_image(tmp_path / "photo.jpg", 0))
    after, size = decode(cache, write_image(tmp_path / "photo.jpg", 1, size=(90, 60)))
    assert before.tobytes() != after.tobytes() and size == (90, 60)


def test_the_cache_stays_within_its_limit(tmp_path: Path) -> None:
    files = [write_image(tmp_path / f"{number}.jpg", number, size=(200, 150)) for number in range(12)]
    cache = ImageCache(tmp_path / "images.sqlite", 500_000 / 1e9, side=200)
    for file in files:
        decode(cache, file)
    assert 0 < len(cache.arrays) < len(files) and cache.arrays.nbytes <= 500_000


def test_a_limit_too_small_for_an_image_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cache_gb=0\.001 .* Set 0\.005 or more"):
        ImageCache(tmp_path / "images.sqlite", 0.001, side=1067)
    cache = ImageCache(tmp_path / "images.sqlite", 0.005, side=1067)
    decode(cache, write_image(tmp_path / "square.jpg", 0, size=(1100, 1100)))
    assert len(cache.arrays) == 1


def test_a_damaged_cache_is_rejected_at_first_and_costs_only_time_later(tmp_path: Path) -> None:
    file, store = write_image(tmp_path / "photo.jpg", 0), tmp_path / "images.sqlite"
    cache = ImageCache(store, 1.0, side=80)
    whole, _ = decode(cache, file)
    store.write_bytes(b"no database" * 1000)
    assert decode(cache, file)[0].tobytes() == whole.tobytes()
    with pytest.raises(InputError, match=r"images\.sqlite cannot be used"):
        ImageCache(store, 1.0, side=80)


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.jpg"):
        ImageCache(tmp_path / "images.sqlite", 1.0, side=80).open(tmp_path / "missing.jpg")


def test_training_images_are_the_same_with_the_cache(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EPMVG_CACHE", str(tmp_path / "cache"))
    augment = AugmentSettings(horizontal_flip=0.5, crop=0.5, scale=0.7, translate=1.0, color_jitter=0.5)

    def tokenize(phrases: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(len(phrases), 1, dtype=torch.int64), torch.zeros(len(phrases), 1, dtype=torch.bool)

    plain, cached = (
        GroundingLoader(
            open_samples(str(squares), split=None), tokenize, image_size=64, augment=augment, shuffle=True, cache_gb=gb
        )
        for gb in (0.0, 1.0)
    )
    for _ in range(2):  # empty, then full
        for one, other in zip(plain.batches(0), cached.batches(0), strict=True):
            assert torch.equal(one.boxes, other.boxes) and torch.equal(one.image_mask, other.image_mask)
            assert (one.images - other.images).abs().mean() < 0.02
    assert cached.cache is not None and len(cached.cache.arrays) == 12
