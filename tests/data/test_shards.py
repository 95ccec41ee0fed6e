"""Shards: what goes in comes out, streamed in windows, safe, and the same training whoever opens the pictures."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch

from epmvg.data import shard_loader
from epmvg.data.archives import read_member
from epmvg.data.catalog import open_records
from epmvg.data.loader import GroundingLoader
from epmvg.data.photos import open_image
from epmvg.data.shard_loader import ShardLoader
from epmvg.data.shards import shard_files
from epmvg.data.transforms import Augment
from epmvg.models.grounder import Grounder
from epmvg.types import InputError, Record


def test_a_round_trip_loses_nothing(squares: Path, in_shards: str) -> None:
    before, after = open_records(str(squares), split=None), open_records(in_shards, split=None)
    assert len(shard_files(in_shards)) == 6 and len(after) == 48
    for a, b in zip(before, after, strict=True):
        assert (a.phrase, a.box, a.split, a.id, a.size, a.extra) == (b.phrase, b.box, b.split, b.id, b.size, b.extra)
    for a, b in zip(before[::4], after[::4], strict=True):
        assert open_image(a.image).tobytes() == open_image(b.image).tobytes()


def loader(in_shards: str, tiny: Grounder, rank: int = 0, world: int = 1, workers: int = 0) -> ShardLoader:
    def make(records: list[Record], window: int) -> GroundingLoader:
        return GroundingLoader(
            records,
            tiny.tokenize,
            canvas=64,
            images=1,
            phrases=3,
            augment=Augment(flip=0.5, move=1.0),
            shuffle=True,
            seed=window,
            workers=workers,
            rank=rank,
            world=world,
        )

    return ShardLoader(shard_files(in_shards), make, split="train", seed=5)


@pytest.mark.parametrize("window", [1, 4])
def test_every_row_comes_once_an_epoch_whoever_shares_it(
    in_shards: str, tiny: Grounder, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(shard_loader, "WINDOW", window)
    rows = sorted(record.id for record in open_records(in_shards, split="train"))
    orders = []
    for epoch, world in ((0, 1), (0, 1), (1, 1), (0, 2)):
        shares = [loader(in_shards, tiny, rank, world) for rank in range(world)]
        seen = [[record.id for batch in share.batches(epoch) for record in batch.records] for share in shares]
        assert len({len(share) for share in shares}) == 1
        assert sorted(name for own in seen for name in own) == rows
        orders.append(seen[0])
    assert orders[0] == orders[1] != orders[2]


def test_resuming_in_an_epoch_goes_on_as_if_unbroken(
    in_shards: str, tiny: Grounder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_loader, "WINDOW", 2)
    whole = list(loader(in_shards, tiny).batches(3))
    assert len(whole) == len(loader(in_shards, tiny))
    for start in (1, 5, len(whole) - 1):
        rest = list(loader(in_shards, tiny).batches(3, start))
        assert len(rest) == len(whole) - start
        assert all(torch.equal(a.image, b.image) for a, b in zip(whole[start:], rest, strict=True))


def test_no_member_leads_out_and_broken_shards_are_named(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    row = {"phrase": "it", "bbox": [0, 0, 1, 1]}
    archive = tmp_path / "bad.tar"
    with tarfile.open(archive, "w") as tar:
        for name, content in (("../secret.png", b"x"), ("../secret.json", json.dumps(row).encode())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "../secret.png"
        tar.addfile(link)
    with pytest.raises(InputError, match="leads out"):
        open_records(str(archive), split=None)
    with pytest.raises(InputError, match=r"holds no link\.png"):
        read_member(archive, "link.png")
    (tmp_path / "cut.tar").write_bytes(archive.read_bytes()[:700])
    (tmp_path / "text.tar").write_text("no tar")
    for name, words in (("cut.tar", "cut off|no plain tar"), ("text.tar", "no plain tar"), ("none.tar", "cannot be")):
        with pytest.raises(InputError, match=words):
            open_records(str(tmp_path / name), split=None)
    with pytest.raises(InputError, match="No file fits"):
        open_records(str(tmp_path / "x-*.tar"), split=None)
