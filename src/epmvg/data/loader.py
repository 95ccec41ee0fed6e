"""Batches of image-phrase pairs grouped by image: an image is decoded and encoded once for its phrases in a batch.

Order and training transforms depend on (seed, epoch, group) only, so that a run can be resumed at any step, and the
batches of a training are the same for any number of worker processes and ranks.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from epmvg.config.settings import AugmentSettings
from epmvg.core.geometry import Letterbox
from epmvg.core.images import ImageFile
from epmvg.core.tokenizer import PhraseTokenizer
from epmvg.core.types import WHOLE_IMAGE, Batch, Box, InputError, Sample
from epmvg.data.epoch_order import EpochOrder
from epmvg.data.image_cache import ImageCache
from epmvg.data.misspell import vary_text
from epmvg.data.readers.files import cache_folder
from epmvg.data.registry import open_samples
from epmvg.data.side_words import swap_sides
from epmvg.data.transforms import apply_transform, draw_transform, largest_side

_PREFETCHED = 4_000_000_000
"""Bytes of batches that the workers on a machine may load ahead; each loads one at least."""

_SHARED_MEMORY = "/dev/shm"
"""Through which workers hand over their batches."""

Tokenize = Callable[[list[str]], tuple[Tensor, Tensor]]
"""Phrases -> tokens int64 [P, L], token_mask bool [P, L]."""


class GroundingLoader:
    """Batches of image-phrase pairs, grouped by image.

    An epoch is a list of groups, shuffled in training: an image with at most `phrases_per_image` of its samples and
    one training transform. The list is cut into batches of `batch_size` samples; a group that a cut divides continues
    in the next batch, with the same transform.

    Args:
        samples: those of one image name it by the same path.
        unlabeled: samples without a box; in each epoch others of them, one after the other.
        unlabeled_ratio: number of unlabeled samples in an epoch, per labeled one.
        tokenize: phrases -> tokens int64 [P, L], token_mask bool [P, L].
        image_size: S, the side of the network's input in pixels.
        batch_size: samples of a batch over all ranks; the last batch of an epoch may have fewer.
        phrases_per_image: maximum samples of a group.
        augment: settings of training transforms; None gives evaluation transforms.
        shuffle: shuffle groups, and samples within their image, in each epoch.
        seed: of order and transforms.
        num_workers: processes that load batches ahead; 0 loads them in the loop.
        rank, world_size: of this process. With `shuffle` each rank takes an equal contiguous part of every batch;
            without, every `world_size`-th batch.
        skip_unreadable: name images that cannot be read, and with `shuffle` boxes outside of their image, in
            `Batch.skipped` instead of raising; a batch of these alone has no samples.
        cached: features [images, ...] by name, in the order of `images`, which are then not decoded.
        cache_gb: size limit of a disk cache of decoded training images; 0 keeps none.
        pin_memory: load into pinned memory, from which copies to a GPU overlap with its work.

    Attributes:
        samples: the labeled ones, then the unlabeled ones.
        images: the paths of all images, in order of first appearance.
        epoch_order: sample numbers and groups of an epoch, in their order.

    Raises:
        InputError: the batches of the workers do not fit into /dev/shm; while iterating, an image cannot be read,
            unless `skip_unreadable`.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        tokenize: Tokenize,
        *,
        image_size: int,
        unlabeled: Sequence[Sample] = (),
        unlabeled_ratio: float = 1.0,
        batch_size: int = 64,
        phrases_per_image: int = 8,
        augment: AugmentSettings | None = None,
        shuffle: bool = False,
        seed: int = 0,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        skip_unreadable: bool = False,
        cached: dict[str, Tensor] | None = None,
        cache_gb: float = 0.0,
        pin_memory: bool = False,
    ) -> None:
        self.samples = [*samples, *unlabeled] if unlabeled else samples
        self.tokenize = tokenize
        self.image_size = image_size
        self.batch_size = batch_size
        self.augment = augment
        self.shuffle = shuffle
        self.seed = seed
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self.rank, self.world_size = rank, world_size
        self.skip_unreadable = skip_unreadable
        self.cached = cached or {}
        self.epoch = 0
        by_image = group_by_image(self.samples)
        self.images = list(by_image)
        self.image_of = np.empty(len(self.samples), dtype=np.int64)  # number of each sample's image
        for image, numbers in enumerate(by_image.values()):
            self.image_of[numbers] = image
        self.epoch_order = EpochOrder(
            self.image_of,
            len(samples),
            unlabeled_ratio=unlabeled_ratio,
            phrases_per_image=phrases_per_image,
            shuffle=shuffle,
            seed=seed,
        )
        self.prefetch_factor = self._prefetch_factor() if num_workers else None
        self.cache: ImageCache | None = None
        if cache_gb and augment is not None:
            self.cache = ImageCache(cache_folder() / "images.sqlite", cache_gb, *largest_side(augment, image_size))

    def __len__(self) -> int:
        """Number of batches per epoch on this rank."""
        return len(self.spans())

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of one epoch; the next call yields those of the next epoch."""
        yield from self.batches(self.epoch)
        self.epoch += 1

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch on this rank, from number `start` on."""
        loader = DataLoader(
            _Epoch(self, epoch, start),
            batch_size=None,
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch_factor,
            pin_memory=self.pin_memory,
            worker_init_fn=_ignore_signals,
            generator=torch.Generator(),  # its own: a resumed run must not draw from the global one once more
        )
        for batch in loader:
            if isinstance(batch, InputError):
                raise batch
            yield cast(Batch, batch)

    def _prefetch_factor(self) -> int:
        """Return how many batches a worker loads ahead: four, or fewer where these exceed the limit or /dev/shm."""
        pairs = self.batch_size / (self.world_size if self.shuffle else 1)
        images = pairs * self.epoch_order.num_groups / max(1, len(self.samples))  # of a batch, on average
        processes = int(os.environ.get("LOCAL_WORLD_SIZE") or self.world_size)  # on this machine; all if it is not said
        need = processes * self.num_workers * images * 12 * self.image_size**2  # three channels of float32
        limit = shutil.disk_usage(_SHARED_MEMORY).total if Path(_SHARED_MEMORY).exists() else math.inf
        if need > limit:
            raise InputError(
                f"data.num_workers={self.num_workers} in each of {processes} processes needs {need / 1e9:.1f} GB of "
                f"shared memory, and {_SHARED_MEMORY} has {limit / 1e9:.1f}. Enlarge it (docker run --shm-size=8g), "
                f"or lower data.num_workers or data.batch_size={self.batch_size}."
            )
        return max(1, min(4, int(min(_PREFETCHED, limit / 2) // need)))

    def spans(self) -> list[tuple[int, int]]:
        """Return where this rank's batches start and stop in the order of an epoch."""
        count, rank, ranks = len(self.epoch_order), self.rank, self.world_size
        spans = [(start, min(start + self.batch_size, count)) for start in range(0, count, self.batch_size)]
        if not self.shuffle:
            return spans[rank::ranks]
        return [(a + (b - a) * rank // ranks, a + (b - a) * (rank + 1) // ranks) for a, b in spans]


@dataclass(slots=True)
class Example:
    """One image with some of its samples, transformed alike."""

    samples: list[Sample]  # [P]
    phrases: list[str]  # [P], sides swapped where the image is flipped
    boxes: Tensor  # float64 [P, 4], cxcywh in 0..1 of the network's input
    letterbox: Letterbox
    mask: Tensor  # bool [S, S], True at padding
    skipped: list[str] = field(default_factory=list)  # reasons of samples of the image that are left out


def collate(examples: Sequence[Example], images: Tensor, tokenize: Tokenize) -> Batch:
    """Join examples and their images [I, 3, S, S] to a batch; without any example it has no samples."""
    phrases = [phrase for example in examples for phrase in example.phrases]
    no_tokens = torch.empty(0, 1, dtype=torch.int64)
    tokens, token_mask = tokenize(phrases) if phrases else (no_tokens, no_tokens.bool())
    image_index = [number for number, example in enumerate(examples) for _ in example.samples]
    samples = [sample for example in examples for sample in example.samples]
    weights = [sample.weight for sample in samples]
    return Batch(
        images=images,
        image_mask=torch.stack([example.mask for example in examples]) if examples else images[:, 0].bool(),
        tokens=tokens,
        token_mask=token_mask,
        image_index=torch.tensor(image_index, dtype=torch.int64),
        boxes=torch.cat([torch.empty(0, 4), *(example.boxes.float() for example in examples)]),
        phrases=phrases,
        letterboxes=[example.letterbox for example in examples],
        samples=samples,
        image_paths=[example.samples[0].image for example in examples],
        weights=None if all(weight == 1 for weight in weights) else torch.tensor(weights, dtype=torch.float32),
    )


class _Epoch(Dataset[Batch | InputError]):
    """This rank's batches of an epoch; errors are returned, since a worker that raises adds its traceback."""

    def __init__(self, loader: GroundingLoader, epoch: int, first: int) -> None:
        self.loader, self.epoch = loader, epoch
        self.spans = loader.spans()[first:]
        self.order, self.group = loader.epoch_order(epoch)
        self.borders = np.flatnonzero(np.diff(self.group, prepend=-1, append=-1))  # where groups start and stop

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> Batch | InputError:
        try:
            return self._batch(*self.spans[index])
        except InputError as error:
            return InputError(str(error))  # a subclass may not be picklable

    def _batch(self, start: int, stop: int) -> Batch:
        """Load the samples between two positions in the order of the epoch."""
        loader, borders = self.loader, self.borders
        cuts = [start, *borders[(borders > start) & (borders < stop)].tolist(), stop] if start < stop else []
        shape = (max(0, len(cuts) - 1), 3, loader.image_size, loader.image_size)
        images = torch.from_numpy((np.zeros if loader.cached else np.empty)(shape, np.float32))  # numpy: huge pages
        examples: list[Example] = []
        read: list[int] = []  # numbers of the images of `examples`
        skipped: list[str] = []
        for low, high in pairwise(cuts):
            try:
                example = self._example(low, high, images[len(examples)])
                skipped += example.skipped
                if example.samples:
                    examples.append(example)
                    read.append(int(loader.image_of[self.order[low]]))
            except InputError as error:
                if not loader.skip_unreadable:
                    raise
                skipped.append(str(error))
        batch = collate(examples, images[: len(examples)], loader.tokenize)
        batch.cached = {name: features[read] for name, features in loader.cached.items()}
        batch.skipped = skipped
        return batch

    def _example(self, low: int, high: int, out: Tensor) -> Example:
        """Load the image of the samples between two positions into `out` [3, S, S]; they are all or part of a group."""
        loader = self.loader
        border = int(np.searchsorted(self.borders, low, side="right"))
        first, last = self.borders[border - 1 : border + 1].tolist()
        group = [loader.samples[number] for number in self.order[first:last]]
        phrases = [sample.phrase for sample in group]
        with (loader.cache.open if loader.cache else ImageFile)(group[0].image) as image:
            whole: Box = (0.0, 0.0, float(image.size[0]), float(image.size[1]))
            boxes = [sample.box if sample.box != WHOLE_IMAGE else whole for sample in group]
            part = list(range(low - first, high - first))
            outside = [number for number in part if loader.shuffle and not _overlaps(boxes[number], image.size)]
            skipped = [f"{image.name}: the box of {phrases[number]!r} lies outside its image" for number in outside]
            if skipped and not loader.skip_unreadable:
                raise InputError(f"{skipped[0]}. Fix or delete the annotation.")
            part = [number for number in part if number not in outside]
            samples = [group[number] for number in part]
            own = torch.tensor([boxes[number] for number in part], dtype=torch.float64).reshape(-1, 4)
            if loader.augment is None:
                letterbox = Letterbox.fit(*image.size, loader.image_size)
                if not loader.cached:
                    out.copy_(torch.from_numpy(letterbox.pad(letterbox.resize(image.decode()))[0]))
                mask = torch.from_numpy(letterbox.mask())
                own = own.clamp(min=0).minimum(own.new_tensor(image.size * 2))
                phrases = [phrases[number] for number in part]
                return Example(samples, phrases, letterbox.to_input(own), letterbox, mask, skipped)
            random = np.random.default_rng([loader.seed, self.epoch, int(self.group[low]), 1])
            transform = draw_transform(image.size, loader.image_size, boxes, phrases, loader.augment, random)
            apply_transform(image.decode(transform.min_size), transform, out)
        if transform.letterbox.flip:
            phrases = [swap_sides(phrase) for phrase in phrases]
        random = np.random.default_rng([loader.seed, self.epoch, int(self.group[low]), 2])
        phrases = [vary_text(phrase, loader.augment.typo, loader.augment.letter_case, random) for phrase in phrases]
        phrases = [phrases[number] for number in part]
        return Example(samples, phrases, transform.boxes(own), transform.letterbox, transform.mask(), skipped)


def _overlaps(box: Box, size: tuple[int, int]) -> bool:
    """Return whether a box, xyxy in pixels, has a part in an image of a width and height."""
    return box[0] < size[0] and box[1] < size[1] and box[2] > 0 and box[3] > 0


def _ignore_signals(_: int) -> None:
    """Leave the signals that a terminal or scheduler sends to a worker and its parent to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which the parent ends a worker
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def group_by_image(samples: Sequence[Sample]) -> dict[Path, list[int]]:
    """Return the numbers of the samples of each image, in order of first appearance."""
    groups: dict[Path, list[int]] = {}
    for number, sample in enumerate(samples):
        groups.setdefault(sample.image, []).append(number)
    return groups


def make_loader(
    name: str,
    *,
    split: str,
    tokenizer: Any,
    image_size: int = 256,
    max_length: int = 20,
    root: str | Path | None = None,
    batch_size: int = 64,
    phrases_per_image: int = 8,
    seed: int = 0,
) -> GroundingLoader:
    """Create a loader of a data set by name, shuffled and augmented if the split is `train`.

    Args:
        name, split, root: as for `open_samples`.
        tokenizer: of transformers, for example `student.tokenizer`.
        max_length: maximum tokens of a phrase, [CLS] and [SEP] included.
        image_size, batch_size, phrases_per_image, seed: as for `GroundingLoader`.

    Raises:
        InputError: as `open_samples`.
    """
    phrase_tokenizer = PhraseTokenizer.of(tokenizer, max_length)

    def tokenize(phrases: list[str]) -> tuple[Tensor, Tensor]:
        tokens = phrase_tokenizer(phrases)
        return torch.from_numpy(tokens.ids), torch.from_numpy(tokens.padding)

    training = split == "train"
    return GroundingLoader(
        open_samples(name, split=split, root=root),
        tokenize,
        image_size=image_size,
        batch_size=batch_size,
        phrases_per_image=phrases_per_image,
        augment=AugmentSettings() if training else None,
        shuffle=training,
        seed=seed,
    )
