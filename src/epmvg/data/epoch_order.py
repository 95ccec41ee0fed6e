"""The order of an epoch: samples in groups of one image, shuffled, and unlabeled samples that take turns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


class EpochOrder:
    """Orders the samples of each epoch; the order depends on the seed and the epoch only.

    Args:
        image: number of each sample's image, of the labeled samples and then of the unlabeled ones.
        num_labeled: how many of them are labeled; an epoch has all of these.
        unlabeled_ratio: number of unlabeled samples in an epoch, per labeled one.
        phrases_per_image: maximum samples of a group.
        shuffle: shuffle groups, and samples within their image, in each epoch.
        seed: of the order.

    Attributes:
        num_groups: of all samples.
    """

    def __init__(
        self,
        image: NDArray[np.int64],
        num_labeled: int,
        *,
        unlabeled_ratio: float,
        phrases_per_image: int,
        shuffle: bool,
        seed: int,
    ) -> None:
        self.shuffle, self.seed = shuffle, seed
        self._labeled = _Groups.of(image[:num_labeled], phrases_per_image)
        self._unlabeled = _Groups.of(image[num_labeled:], phrases_per_image)
        self._per_epoch = round(unlabeled_ratio * num_labeled) if len(image) > num_labeled else 0  # unlabeled ones
        self.num_groups = self._labeled.total + self._unlabeled.total

    def __len__(self) -> int:
        """Number of samples per epoch."""
        return len(self._labeled.image) + self._per_epoch

    def __call__(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the sample numbers of an epoch in their order [P], and the group of each [P]."""
        random = np.random.default_rng([self.seed, epoch])
        order, group = self._labeled.order(random if self.shuffle else None)
        count = self._labeled.total
        if self._per_epoch:
            added, added_group, added_count = self._unlabeled_order(epoch)
            order, group = np.concatenate([order, len(order) + added]), np.concatenate([group, count + added_group])
            count += added_count
        return _shuffle_groups(order, group, count, random) if self.shuffle else (order, group)

    def _unlabeled_order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        """Return the unlabeled samples of an epoch, the group of each, and the number of groups.

        All unlabeled samples follow one another, in another order in each pass; an epoch continues where the one
        before ended.
        """
        groups, count = self._unlabeled, len(self._unlabeled.image)
        start = epoch * self._per_epoch
        stop = start + self._per_epoch
        passes = range(start // count, -(-stop // count))
        orders, numbers = [], []
        for index, number in enumerate(passes):
            random = np.random.default_rng([self.seed, number, 0, 3])
            order, group = _shuffle_groups(*groups.order(random), groups.total, random)
            orders.append(order)
            numbers.append(group + index * groups.total)
        taken = slice(start - passes.start * count, stop - passes.start * count)
        return np.concatenate(orders)[taken], np.concatenate(numbers)[taken], len(passes) * groups.total


@dataclass(frozen=True, slots=True)
class _Groups:
    """Samples in groups of one image each."""

    image: NDArray[np.int64]  # number of each sample's image
    sample_counts: NDArray[np.int64]  # of each image
    group_counts: NDArray[np.int64]  # of each image

    @classmethod
    def of(cls, image: NDArray[np.int64], phrases_per_image: int) -> _Groups:
        sample_counts = np.bincount(image)
        return cls(image, sample_counts, -(-sample_counts // phrases_per_image))

    @property
    def total(self) -> int:
        """Number of groups."""
        return int(self.group_counts.sum())

    def order(self, random: np.random.Generator | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return sample numbers, groups one after the other, and the group of each; shuffled within an image."""
        within_image = np.arange(len(self.image)) if random is None else random.random(len(self.image))
        order = np.lexsort((within_image, self.image))
        image = self.image[order]
        position = np.arange(len(order)) - _starts(self.sample_counts)[image]  # of a sample among those of its image
        part = position * self.group_counts[image] // self.sample_counts[image]
        return order, _starts(self.group_counts)[image] + part


def _shuffle_groups(
    order: NDArray[np.int64], group: NDArray[np.int64], count: int, random: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Shuffle groups, numbered below `count`, of samples in an order."""
    shuffled = np.argsort(random.permutation(count)[group], kind="stable")
    return order[shuffled], group[shuffled]


def _starts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each of some consecutive runs of given lengths starts."""
    return np.cumsum(counts) - counts
