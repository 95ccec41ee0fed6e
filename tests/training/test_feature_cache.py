"""Cached features belong to the backbone, images and settings that they are read for; the cache keeps its bound."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import recipe
from torch import Tensor

import epmvg
from epmvg.core.types import InputError, Sample
from epmvg.data.loader import GroundingLoader
from epmvg.data.registry import open_samples
from epmvg.models.factory import create_model
from epmvg.models.grounder import Grounder
from epmvg.training.feature_cache import FeatureCache


def frozen(**visual: object) -> Grounder:
    torch.manual_seed(0)
    return create_model("tiny-resnet", visual_encoder={"frozen": ["all"]} | visual).eval()


def quiet(row: dict[str, object]) -> None:
    pass


def cached(model: Grounder, samples: list[Sample], file: Path, limit_gb: float = 1.0) -> Tensor:
    cache = FeatureCache(model, samples, file, limit_gb, quiet)
    return cache[range(len(cache.keys))].float()


@pytest.fixture
def samples(squares: Path) -> list[Sample]:
    return open_samples(str(squares), split="train")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "features.sqlite"


def test_features_are_those_of_the_backbone(samples: list[Sample], file: Path) -> None:
    """Models with the same weights but other strides, mean or std do not share features."""
    half = [0.5, 0.5, 0.5]
    models = [frozen(strides=[16, 32]), frozen(strides=[32]), frozen(strides=[16, 32], mean=half, std=half)]
    first = {sample.image: sample for sample in reversed(samples)}
    images = list(dict.fromkeys(sample.image for sample in samples))
    for number, model in enumerate([*models, models[0]]):
        features = cached(model, samples, file)
        loader = GroundingLoader(
            [first[image] for image in images], model.tokenize, image_size=model.image_size, batch_size=32
        )
        batch = next(iter(loader))
        with torch.no_grad():
            expected = model.visual_encoder.backbone_features(batch.images, batch.image_mask)
        torch.testing.assert_close(features, expected, atol=0.02, rtol=0.01)
        assert len(FeatureCache(model, samples, file, 1, quiet).cache) == 6 * min(number + 1, 3)


def test_settings_that_features_do_not_depend_on_share_them(samples: list[Sample], file: Path) -> None:
    for width in (32, 64):
        assert len(FeatureCache(frozen(width=width), samples, file, 1, quiet).cache) == 6


def test_another_image_of_the_same_name_is_encoded_again(samples: list[Sample], file: Path) -> None:
    before = cached(frozen(), samples, file)
    samples[0].image.write_bytes(samples[4].image.read_bytes())
    after = cached(frozen(), samples, file)
    assert torch.equal(after[0], before[1]) and not torch.equal(after[0], before[0])
    assert torch.equal(after[1:], before[1:])


def test_unreadable_images_are_skipped_and_counted(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A truncated one has a size, so only the cache notices it; the others keep their own features."""
    monkeypatch.setenv("EPMVG_CACHE", str(tmp_path / "cache"))
    whole = cached(frozen(), samples, tmp_path / "whole.sqlite")
    content = samples[4].image.read_bytes()
    samples[4].image.write_bytes(content[: len(content) // 2])
    assert torch.equal(cached(frozen(), samples, tmp_path / "other.sqlite"), whole[[0, 2, 3, 4, 5]])
    reported: list[dict[str, object]] = []
    settings = ["data.augment=null", "train.cache_features=true", "model.visual_encoder.frozen=[all]"]
    file = samples[0].image.with_name("annotations.jsonl")
    epmvg.train(recipe(file, *settings, "train.epochs=1"), tmp_path / "run", report=reported.append)
    (skipped,) = [row for row in reported if row["event"] == "skipped"]
    assert skipped["rows"] == 4 and samples[4].image.name in str(skipped["why"])
    assert [row["train"] for row in reported if row["event"] == "begin"] == ["20 phrases of 5 images"]
    for sample in samples:
        sample.image.write_bytes(b"no image")
    with pytest.raises(InputError, match="None of the training images can be read: 24 annotations"):
        epmvg.train(recipe(file, *settings), tmp_path / "none")


def test_an_interrupted_pass_continues(samples: list[Sample], file: Path) -> None:
    def interrupt(row: dict[str, object]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FeatureCache(frozen(), samples, file, 1, interrupt)
    rows: list[dict[str, object]] = []
    FeatureCache(frozen(), samples, file, 1, rows.append)
    assert rows == []  # its six images are one batch, which was saved


def test_the_cache_keeps_its_bound(samples: list[Sample], file: Path) -> None:
    """What was used longest ago is removed first; the images of one training must fit."""
    model = frozen()
    parts = [[sample for sample in samples if sample.image.name == f"{number}.png"] for number in (0, 2, 4)]
    nbytes = cached(model, parts[0], file).nbytes // 2
    two = (2.5 * nbytes + 60_000) / 1e9
    first = FeatureCache(model, parts[0], file, two, quiet)
    second = FeatureCache(model, parts[1], file, two, quiet)
    for _ in range(40):  # until the bound is reached
        parts[2][0].image.write_bytes(parts[2][0].image.read_bytes() + b"\0")
        FeatureCache(model, parts[0], file, two, quiet)
        FeatureCache(model, parts[2], file, two, quiet)
    assert first.cache.nbytes <= two * 1e9 and len(first[[0]]) == 1
    with pytest.raises(InputError, match=r"lost features .* Raise train\.feature_cache_gb"):
        second[[0]]
    with pytest.raises(InputError, match=r"Raise train\.feature_cache_gb=.* or set train\.cache_features=false"):
        FeatureCache(frozen(strides=[16]), samples, file, nbytes / 1e9, quiet)
