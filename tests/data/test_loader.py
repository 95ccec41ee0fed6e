"""Loader: exact batch sizes, every sample once per epoch, the same batches for any number of workers and ranks."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from epmvg.config.settings import AugmentSettings
from epmvg.core.boxes import to_xyxy
from epmvg.core.geometry import Letterbox
from epmvg.core.types import WHOLE_IMAGE, Batch, InputError, Sample
from epmvg.data.loader import Example, GroundingLoader, collate, make_loader
from epmvg.data.registry import open_samples
from epmvg.models.grounder import Grounder

VARIED = AugmentSettings(horizontal_flip=0.5, crop=0.8, scale=0.7, translate=1.0, color_jitter=0.5)


def tokenize(phrases: list[str]) -> tuple[Tensor, Tensor]:
    return torch.tensor([[len(phrase)] for phrase in phrases]), torch.zeros(len(phrases), 1, dtype=torch.bool)


def make(squares: Path, **options: object) -> GroundingLoader:
    """12 images with four samples each."""
    settings = {
        "image_size": 64,
        "batch_size": 10,
        "phrases_per_image": 3,
        "shuffle": True,
        "augment": VARIED,
    } | options
    return GroundingLoader(open_samples(str(squares), split=None), tokenize, **settings)  # type: ignore[arg-type]


def uneven(counts: list[int], **options: object) -> GroundingLoader:
    """Images that do not exist, with some samples each."""
    samples = [
        Sample(Path(f"{image}.png"), f"{image}-{number}", (0, 0, 9, 9))
        for image, count in enumerate(counts)
        for number in range(count)
    ]
    return GroundingLoader(samples, tokenize, image_size=32, **options)  # type: ignore[arg-type]


def ids(batches: list[Batch]) -> list[str]:
    return [sample.id for batch in batches for sample in batch.samples]


def same(a: Batch, b: Batch) -> bool:
    return ids([a]) == ids([b]) and torch.equal(a.images, b.images) and torch.equal(a.boxes, b.boxes)


def test_every_sample_comes_once_per_epoch(squares: Path) -> None:
    loader = make(squares)
    first, second = ids(list(loader)), ids(list(loader))
    assert sorted(first) == sorted(second) == sorted(sample.id for sample in loader.samples)
    assert first != second


@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_have_exactly_the_given_number_of_pairs(squares: Path, shuffle: bool) -> None:
    loader = make(squares, shuffle=shuffle)
    sizes = [len(batch.samples) for batch in loader.batches(0)]
    assert sizes == [10, 10, 10, 10, 8] and len(loader) == 5


def test_groups_are_even_and_stay_together(squares: Path) -> None:
    """13, 1 and 8 samples with at most 5 per group make groups of 4, 4, 5 and 1 and 4, 4."""
    loader = uneven([13, 1, 8], phrases_per_image=5, shuffle=True)
    order, group = loader.epoch_order(0)
    assert sorted(order.tolist()) == list(range(22))
    runs = [
        len(part)
        for part in torch.tensor(group).split_with_sizes(
            torch.tensor(group).unique_consecutive(return_counts=True)[1].tolist()
        )
    ]
    assert sorted(runs) == [1, 4, 4, 4, 4, 5]
    images = [loader.samples[number].image for number in order]
    assert all(one == other for (one, a), (other, b) in pairwise(zip(images, group, strict=True)) if a == b)
    plain, _ = uneven([2, 3], phrases_per_image=2).epoch_order(7)
    assert plain.tolist() == list(range(5))


def test_a_group_that_a_batch_border_divides_keeps_its_transform(squares: Path) -> None:
    cut = list(make(squares, batch_size=5, phrases_per_image=4).batches(0))
    whole = list(make(squares, batch_size=48, phrases_per_image=4).batches(0))
    images = {
        sample.image: whole[0].images[i] for i, sample in zip(whole[0].image_index, whole[0].samples, strict=True)
    }
    seen = [sample.image for batch in cut for sample in batch.samples]
    assert seen == [sample.image for sample in whole[0].samples]
    for batch in cut:
        assert len(batch.images) == len({sample.image for sample in batch.samples})
        for i, sample in zip(batch.image_index, batch.samples, strict=True):
            assert torch.equal(batch.images[i], images[sample.image])
    assert sum(len(batch.images) for batch in cut) > len(images)


def test_an_image_is_read_once_for_its_phrases(squares: Path) -> None:
    for batch in make(squares, phrases_per_image=4, batch_size=16).batches(0):
        assert len(batch.images) == len({sample.image for sample in batch.samples}) == 4
        assert batch.image_paths == list(dict.fromkeys(sample.image for sample in batch.samples))


def test_resuming_within_an_epoch_continues_it(squares: Path) -> None:
    whole = list(make(squares).batches(3))
    rest = list(make(squares).batches(3, start=2))
    assert len(whole) == len(rest) + 2
    assert all(same(a, b) for a, b in zip(whole[2:], rest, strict=True))
    assert list(make(squares).batches(3, start=5)) == []


def test_workers_change_nothing(squares: Path) -> None:
    alone, helped = list(make(squares).batches(0)), list(make(squares, num_workers=2).batches(0))
    assert all(same(a, b) for a, b in zip(alone, helped, strict=True))


@pytest.mark.parametrize("world_size", [2, 5])
def test_ranks_take_equal_contiguous_parts_of_every_batch(squares: Path, world_size: int) -> None:
    whole = list(make(squares).batches(0))
    parts = [list(make(squares, rank=rank, world_size=world_size).batches(0)) for rank in range(world_size)]
    for number, batch in enumerate(whole):
        own = [part[number] for part in parts]
        assert ids(own) == ids([batch])
        sizes = [len(each.samples) for each in own]
        assert max(sizes) - min(sizes) <= (number == 4)  # only the last batch has another size


def test_without_shuffling_ranks_take_whole_batches_in_turn(squares: Path) -> None:
    whole = list(make(squares, shuffle=False, augment=None).batches(0))
    parts = [list(make(squares, shuffle=False, augment=None, rank=rank, world_size=2).batches(0)) for rank in range(2)]
    assert [len(part) for part in parts] == [3, 2]
    assert all(same(a, b) for a, b in zip(whole[::2], parts[0], strict=True))
    assert all(same(a, b) for a, b in zip(whole[1::2], parts[1], strict=True))


def test_a_flip_swaps_sides_in_boxes_and_phrases(squares: Path) -> None:
    plain = next(make(squares, augment=None, shuffle=False).batches(0))
    flipped = next(
        make(
            squares,
            augment=AugmentSettings(horizontal_flip=1.0, crop=0, scale=1, color_jitter=0, translate=0),
            shuffle=False,
        ).batches(0)
    )
    torch.testing.assert_close(flipped.boxes[:, 0], 1 - plain.boxes[:, 0], atol=0.02, rtol=0)
    torch.testing.assert_close(flipped.boxes[:, 1:], plain.boxes[:, 1:])
    assert plain.phrases == [sample.phrase for sample in plain.samples]


@given(st.integers(0, 10_000), st.sampled_from([None, VARIED]))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_targets_lie_in_the_image(squares: Path, seed: int, augment: AugmentSettings | None) -> None:
    """Boxes over the image's border are clipped; in training those outside are left out and named."""
    random = np.random.default_rng(seed)
    x, y, w, h = random.integers([-100, -80, 1, 1], [100, 80, 150, 150], (40, 4)).T
    boxes = np.stack([x, y, x + w, y + h], 1)
    inside = (x < 80) & (y < 60) & (x + w > 0) & (y + h > 0)
    samples = [
        Sample(squares.with_name(f"{number % 5}.png"), "a thing", tuple(map(float, box)), id=str(number))  # type: ignore[arg-type]
        for number, box in enumerate(boxes)
    ]
    options: dict[str, Any] = {"image_size": 64, "augment": augment, "batch_size": 7, "phrases_per_image": 3}
    batches = list(GroundingLoader(samples, tokenize, shuffle=True, skip_unreadable=True, **options))
    assert sorted(map(int, ids(batches))) == np.flatnonzero(inside).tolist()
    assert sum(len(batch.skipped) for batch in batches) == (~inside).sum()
    edges = to_xyxy(torch.cat([batch.boxes for batch in batches]))
    assert edges.min() >= -1e-6 and edges.max() <= 1 + 1e-6 and (edges[:, 2:] > edges[:, :2]).all()
    if not inside.all():
        with pytest.raises(InputError, match=r"png: the box of 'a thing' lies outside its image\. Fix or delete"):
            list(GroundingLoader(samples, tokenize, shuffle=True, **options))
    assert len(ids(list(GroundingLoader(samples, tokenize, **options)))) == 40  # evaluation: misses


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_image_is_named_or_skipped(squares: Path, num_workers: int) -> None:
    (squares.parent / "3.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"3\.png"):
        list(make(squares, augment=None, num_workers=num_workers).batches(0))
    batches = list(make(squares, skip_unreadable=True, num_workers=num_workers).batches(0))
    assert any("3.png" in note for batch in batches for note in batch.skipped)
    assert sum(len(batch.samples) for batch in batches) == 44


def test_a_batch_of_unreadable_images_is_empty() -> None:
    (batch,) = uneven([2], skip_unreadable=True).batches(0)
    assert len(batch.skipped) == 1 and batch.samples == [] and batch.boxes.shape == (0, 4)
    assert batch.images.shape == (0, 3, 32, 32) and batch.image_mask.shape == (0, 32, 32)
    assert batch.tokens.shape == batch.token_mask.shape == (0, 1) and batch.image_index.shape == (0,)


def test_cached_features_follow_their_images(squares: Path) -> None:
    loader = make(squares, augment=None, cached={"backbone_features": torch.arange(12.0)[:, None]})
    for batch in loader.batches(0):
        assert batch.images.abs().sum() == 0  # not decoded
        for index, sample in zip(batch.image_index.tolist(), batch.samples, strict=True):
            assert batch.cached["backbone_features"][index].item() == int(sample.image.stem)


def test_cached_features_need_no_sizes_in_annotations(squares: Path) -> None:
    cached = {"backbone_features": torch.zeros(12, 1)}
    stated = list(make(squares, augment=None, cached=cached).batches(0))
    rows = [json.loads(line) for line in squares.read_text().splitlines()]
    squares.write_text("".join(json.dumps(row | {"width": None, "height": None}) + "\n" for row in rows))
    read = list(make(squares, augment=None, cached=cached).batches(0))
    assert all(same(a, b) for a, b in zip(stated, read, strict=True))


def test_collate_joins_examples() -> None:
    letterbox = Letterbox.fit(32, 32, 32)
    mask = torch.zeros(32, 32, dtype=torch.bool)
    samples = [Sample(Path("a.png"), phrase, (0, 0, 8, 8)) for phrase in ("one", "two", "three")]
    first = Example(samples[:2], ["one", "two"], torch.zeros(2, 4), letterbox, mask)
    second = Example(samples[2:], ["three"], torch.ones(1, 4), letterbox, ~mask)
    batch = collate([first, second], torch.zeros(2, 3, 32, 32), tokenize)
    assert batch.image_index.tolist() == [0, 0, 1] and batch.phrases == ["one", "two", "three"]
    assert batch.tokens.tolist() == [[3], [3], [5]] and batch.boxes[:, 0].tolist() == [0, 0, 1]
    assert batch.image_mask[0].sum() == 0 and batch.image_mask[1].all() and batch.samples == samples


def test_make_loader_augments_training_splits_only(squares: Path, tiny: Grounder) -> None:
    train, val = (
        make_loader(str(squares), split=split, tokenizer=tiny.tokenizer, image_size=64, max_length=12, batch_size=6)
        for split in ("train", "val")
    )
    assert train.shuffle and train.augment is not None and not val.shuffle and val.augment is None
    batch = next(iter(val))
    assert len(batch.samples) == 6 and batch.images.shape[2:] == (64, 64) and batch.tokens.shape[1] <= 12
    assert torch.equal(batch.tokens, tiny.tokenize(batch.phrases)[0])


def test_unlabeled_samples_take_turns_over_the_epochs(squares: Path) -> None:
    """12 labeled and 9 unlabeled samples in an epoch; each of the 36 unlabeled ones once in 4 epochs."""
    samples = open_samples(str(squares), split=None)
    labeled = samples[:12]
    unlabeled = [replace(sample, box=WHOLE_IMAGE, weight=0.0) for sample in samples[12:]]
    settings = {"image_size": 64, "batch_size": 5, "phrases_per_image": 3, "shuffle": True, "augment": VARIED}
    loader = GroundingLoader(labeled, tokenize, unlabeled=unlabeled, unlabeled_ratio=0.75, **settings)  # type: ignore[arg-type]
    epochs = [list(loader) for _ in range(8)]
    drawn: list[str] = []
    for batches in epochs:
        assert [len(batch.samples) for batch in batches] == [5, 5, 5, 5, 1]
        without = [sample.id for batch in batches for sample in batch.samples if not sample.weight]
        assert len(without) == 9
        assert sorted(set(ids(batches)) - set(without)) == sorted(sample.id for sample in labeled)
        drawn += without
    passes = [drawn[:36], drawn[36:]]
    for one in passes:
        assert sorted(one) == sorted(sample.id for sample in unlabeled)
    assert passes[0] != passes[1]


def test_box_of_an_unlabeled_sample_is_the_whole_image_in_the_input(squares: Path) -> None:
    samples = open_samples(str(squares), split=None)
    unlabeled = [replace(sample, box=WHOLE_IMAGE, weight=0.0) for sample in samples[4:]]
    loader = GroundingLoader(samples[:4], tokenize, image_size=64, unlabeled=unlabeled, unlabeled_ratio=11)
    for batch in loader:
        assert batch.weights is not None or all(sample.weight for sample in batch.samples)
        for sample, box, index in zip(batch.samples, batch.boxes, batch.image_index.tolist(), strict=True):
            content = ~batch.image_mask[index]
            expected = [content.any(axis).sum().item() / 64 for axis in (0, 1)]
            assert sample.weight or box[2:].tolist() == pytest.approx(expected)
