"""Loading: every row once an epoch, grouped by image, the same order whoever asks and however often."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from epmvg.core.types import Batch, InputError
from epmvg.data.loader import GroundingLoader
from epmvg.data.readers.jsonl import read_jsonl
from epmvg.data.transforms import Augment
from epmvg.models.grounder import Grounder

VARIED = Augment(horizontal_flip=0.5, scale=0.7, translate=1.0, color_jitter=0.5)


def make(squares: Path, tiny: Grounder, **options: object) -> GroundingLoader:
    records = read_jsonl(squares)
    settings = {"image_size": 64, "images": 4, "phrases": 3, "shuffle": True, "augment": VARIED} | options
    return GroundingLoader(records, tiny.tokenize, **settings)  # type: ignore[arg-type]


def ids(batches: list[Batch]) -> list[str]:
    return [record.id for batch in batches for record in batch.samples]


def same(a: Batch, b: Batch) -> bool:
    return (
        ids([a]) == ids([b])
        and torch.equal(a.images, b.images)
        and torch.equal(a.boxes, b.boxes)
        and a.phrases == b.phrases
    )


def test_every_row_comes_once_an_epoch(squares: Path, tiny: Grounder) -> None:
    loader = make(squares, tiny)
    everyone = sorted(record.id for record in loader.records)
    first, second = ids(list(loader)), ids(list(loader))
    assert sorted(first) == sorted(second) == everyone
    assert first != second


def test_an_image_is_opened_once_for_its_phrases(squares: Path, tiny: Grounder) -> None:
    for batch in make(squares, tiny, phrases=4):
        assert len(batch.images) == len({record.image for record in batch.samples}) < len(batch.samples)
        for number, record in zip(batch.image_index.tolist(), batch.samples, strict=True):
            alone = make(squares, tiny, augment=None, shuffle=False)
            assert record.image in alone.images and number < len(batch.images)


def test_resuming_in_an_epoch_goes_on_as_if_unbroken(squares: Path, tiny: Grounder) -> None:
    whole = list(make(squares, tiny).batches(3))
    rest = list(make(squares, tiny).batches(3, start=2))
    assert len(whole) == len(rest) + 2
    assert all(same(a, b) for a, b in zip(whole[2:], rest, strict=True))


def test_workers_change_nothing(squares: Path, tiny: Grounder) -> None:
    alone, helped = list(make(squares, tiny).batches(0)), list(make(squares, tiny, workers=2).batches(0))
    assert all(same(a, b) for a, b in zip(alone, helped, strict=True))


def test_processes_share_the_batches_without_overlap(squares: Path, tiny: Grounder) -> None:
    parts = [ids(list(make(squares, tiny, rank=rank, world=2, images=2).batches(0))) for rank in range(2)]
    assert not set(parts[0]) & set(parts[1])
    assert sorted(parts[0] + parts[1]) == sorted(ids(list(make(squares, tiny).batches(0))))


def test_a_flip_swaps_sides_in_box_and_phrase(squares: Path, tiny: Grounder) -> None:
    plain = next(make(squares, tiny, augment=None, shuffle=False).batches(0))
    mirrored = next(make(squares, tiny, augment=Augment(horizontal_flip=1.0), shuffle=False).batches(0))
    torch.testing.assert_close(mirrored.boxes[:, 0], 1 - plain.boxes[:, 0], atol=0.02, rtol=0)
    torch.testing.assert_close(mirrored.boxes[:, 1:], plain.boxes[:, 1:])


def test_a_broken_photo_is_named_or_skipped(squares: Path, tiny: Grounder) -> None:
    (squares.parent / "3.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"3\.png"):
        list(make(squares, tiny, augment=None).batches(0))
    batches = list(make(squares, tiny, tolerant=True).batches(0))
    assert any("3.png" in note for batch in batches for note in batch.skipped)
    assert sum(len(batch.samples) for batch in batches) == 44


def test_stored_answers_follow_their_images(squares: Path, tiny: Grounder) -> None:
    numbers = torch.arange(12.0)[:, None]
    loader = make(squares, tiny, augment=None, stored={"maps": numbers})
    for batch in loader:
        for image_index, record in zip(batch.image_index.tolist(), batch.samples, strict=True):
            assert batch.cached["maps"][image_index].item() == int(record.image.stem)


def test_stored_views_need_no_sizes_in_rows(squares: Path, tiny: Grounder) -> None:
    stored = {"maps": torch.zeros(12, 1)}
    told = list(make(squares, tiny, augment=None, stored=stored).batches(0))
    rows = [json.loads(line) for line in squares.read_text().splitlines()]
    squares.write_text("".join(json.dumps(row | {"width": None, "height": None}) + "\n" for row in rows))
    looked = list(make(squares, tiny, augment=None, stored=stored).batches(0))
    assert all(same(a, b) for a, b in zip(told, looked, strict=True))
