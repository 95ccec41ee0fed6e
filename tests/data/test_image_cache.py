"""Kept pictures: the second time is like the first, the folder stays in its bounds, and nothing relies on it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from epmvg.core.types import InputError
from epmvg.data.image_cache import ImageCache
from epmvg.data.loader import GroundingLoader
from epmvg.data.readers.jsonl import read_jsonl
from epmvg.data.transforms import Augment
from epmvg.models.grounder import Grounder


def photo(file: Path, seed: int, size: tuple[int, int] = (200, 100), turned: bool = False) -> Path:
    noise = np.random.default_rng(seed).integers(0, 256, (5, 10, 3), dtype=np.uint8)
    exif = Image.Exif()
    if turned:
        exif[0x0112] = 6
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(file, quality=95, exif=exif.tobytes())
    return file


@pytest.mark.parametrize("turned", [False, True])
def test_the_second_time_is_like_the_first(tmp_path: Path, turned: bool) -> None:
    file = photo(tmp_path / "photo.jpg", 0, turned=turned)
    cache = ImageCache(tmp_path / "kept", 1.0, longest=80)
    first, size = cache.open(file)
    file_state = file.stat()
    file.write_bytes(b"x" * file_state.st_size)  # a picture no more, but by its state the same file
    os.utime(file, ns=(file_state.st_atime_ns, file_state.st_mtime_ns))
    again, same_size = cache.open(file)
    assert first.tobytes() == again.tobytes() and size == same_size == ((100, 200) if turned else (200, 100))
    assert max(first.size) == 80


def test_a_changed_photo_is_opened_anew(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "kept", 1.0, longest=80)
    before, _ = cache.open(photo(tmp_path / "photo.jpg", 0))
    after, size = cache.open(photo(tmp_path / "photo.jpg", 1, size=(90, 60)))
    assert before.tobytes() != after.tobytes() and size == (90, 60)


def test_what_is_kept_stays_in_its_bounds(tmp_path: Path) -> None:
    files = [photo(tmp_path / f"{number}.jpg", number, size=(40, 30)) for number in range(120)]
    room = 64 * 2 * 4900  # two pictures of 40 x 30 a shelf
    cache = ImageCache(tmp_path / "kept", room / 1e9, longest=40)
    for file in files:
        cache.open(file)
    kept = list((tmp_path / "kept").rglob("*.rgb"))
    assert 0 < sum(file.stat().st_size for file in kept) <= room
    assert len(kept) < len(files)


def test_a_limit_that_keeps_nothing_is_refused_and_the_least_one_keeps_any_shape(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cache_gb=0\.1 .* give 0\.22 or more"):
        ImageCache(tmp_path / "kept", 0.1, longest=1067)
    cache = ImageCache(tmp_path / "kept", 0.22, longest=1067)
    cache.open(photo(tmp_path / "square.jpg", 0, size=(1100, 1100)))
    assert len(list((tmp_path / "kept").rglob("*.rgb"))) == 1


def test_a_spoilt_or_missing_file_costs_only_time(tmp_path: Path) -> None:
    file = photo(tmp_path / "photo.jpg", 0)
    cache = ImageCache(tmp_path / "kept", 1.0, longest=80)
    whole, _ = cache.open(file)
    (kept,) = (tmp_path / "kept").rglob("*.rgb")
    for spoilt in (b"", kept.read_bytes()[:-1], b"\xff" * 40):
        kept.write_bytes(spoilt)
        assert cache.open(file)[0].tobytes() == whole.tobytes()
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.write_bytes(b"a file where a folder should be")
    assert cache.open(file)[0].tobytes() == whole.tobytes()


def test_a_missing_photo_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.jpg"):
        ImageCache(tmp_path / "kept", 1.0, longest=80).open(tmp_path / "absent.jpg")


def test_training_views_are_those_of_the_photos(
    squares: Path, tiny: Grounder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EPMVG_CACHE", str(tmp_path / "cache"))
    augment = Augment(horizontal_flip=0.5, crop=0.5, scale=0.7, translate=1.0, color_jitter=0.5)
    plain, kept = (
        GroundingLoader(
            read_jsonl(squares), tiny.tokenize, image_size=64, images=4, augment=augment, shuffle=True, cache_gb=gb
        )
        for gb in (0.0, 1.0)
    )
    for _ in range(2):  # empty, then full
        for seen, again in zip(plain.batches(0), kept.batches(0), strict=True):
            assert torch.equal(seen.boxes, again.boxes) and torch.equal(seen.image_mask, again.image_mask)
            assert (seen.images - again.images).abs().mean() < 0.02
    assert list((tmp_path / "cache").rglob("*.rgb"))
