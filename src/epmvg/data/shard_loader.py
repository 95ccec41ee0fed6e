"""Training from shards: streamed a window at a time, so that no more than a window's rows are ever held."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from epmvg.data.jsonl import Skipped
from epmvg.data.loader import GroundingLoader
from epmvg.data.samples import Samples
from epmvg.data.shards import read_shards, shard_rows
from epmvg.types import Batch, InputError, Record

WINDOW = 8
"""Shards whose rows are held, and shuffled among each other, at once."""


class ShardLoader:
    """Batches of shards, a window of `WINDOW` of them after another, in an order drawn anew each epoch.

    Every row comes once an epoch; order and views are functions of (seed, epoch), whatever the number of workers, and
    all processes take as many steps.

    Args:
        files: the shards.
        make: a window's records and number -> their loader.
        split, split_key: which rows; windows without any are passed over.
        seed: of the order of windows.

    Attributes:
        skipped: rows that cannot be used.
        samples: of all windows.

    Raises:
        InputError: a shard cannot be read, or none has a usable row.
    """

    def __init__(
        self,
        files: Sequence[Path],
        make: Callable[[list[Record], int], GroundingLoader],
        *,
        split: str,
        split_key: str = "split",
        seed: int = 0,
    ) -> None:
        self.make, self.split, self.split_key, self.seed = make, split, split_key, seed
        self.skipped = Skipped()
        self.windows = [
            window
            for window in (files[start : start + WINDOW] for start in range(0, len(files), WINDOW))
            if any(row.get(split_key) == split for file in window for _, row in shard_rows(file))
        ]
        if not self.windows:
            raise InputError(f"{files[0]} and the shards beside it have no row of split {split!r}: check data.train.")
        opened = (self._open(number, self.skipped) for number in range(len(self.windows)))
        self.lengths, samples = zip(*((len(loader), Samples.of(loader.records)) for loader in opened), strict=True)
        self.samples = Samples.joined(samples)

    def __len__(self) -> int:
        """Batches an epoch, on this process."""
        return sum(self.lengths)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from number `start` on."""
        for number in np.random.default_rng([self.seed, epoch]).permutation(len(self.windows)).tolist():
            if start >= self.lengths[number]:
                start -= self.lengths[number]
            else:
                yield from self._open(number, Skipped()).batches(epoch, start)
                start = 0

    def _open(self, number: int, skipped: Skipped) -> GroundingLoader:
        window = self.windows[number]
        return self.make(read_shards(window, split=self.split, split_key=self.split_key, skipped=skipped), number)
