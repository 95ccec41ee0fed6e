"""From records to batches, grouped by image: a picture is opened and encoded once for all phrases it is asked.

Order and views are a pure function of (seed, epoch, image, group), so a resumed run sees what an uninterrupted one
would have seen, and the batches of a training are the same for any number of workers or processes.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from epmvg.config.settings import AugmentSettings
from epmvg.core.geometry import Letterbox
from epmvg.core.images import ImageFile
from epmvg.core.tokenizer import PhraseTokenizer
from epmvg.core.types import Batch, InputError, Sample
from epmvg.data.garbage import collector_paused
from epmvg.data.image_cache import ImageCache
from epmvg.data.registry import cache_folder, open_samples
from epmvg.data.transforms import Augment, pad_of, render, swap_sides, training_view
from epmvg.data.views import View, evaluation_view, image_of, laid_rectangle, lay

Tokenize = Callable[[list[str]], tuple[Tensor, Tensor]]
Group = tuple[int, int, list[int]]  # an image's number, the group's number among the image's, the records' numbers


class GroundingLoader:
    """Batches of records, grouped by image.

    Args:
        records: the rows; those of one image should name it by the same path.
        tokenize: phrases -> tokens int64 [P, L], token_mask bool [P, L].
        canvas: S in pixels.
        images: groups in a batch (an image with some of its phrases each), over all processes together.
        phrases: at most this many phrases in a group; an image with more makes several, each with a view of its own.
        augment: how training views vary; None gives evaluation views.
        shuffle: draw the order of images and phrases anew each epoch; otherwise rows come as they are.
        seed: of order and views.
        workers: processes that open pictures ahead of the loop; 0 opens them in the loop.
        rank, world: this process among those that work together. With `shuffle` each takes its part of every batch,
            which is empty where a last batch has fewer groups than there are processes; otherwise they take whole
            batches in turn.
        tolerant: leave out pictures that cannot be opened and name them in `Batch.skipped`, instead of raising; a batch
            that has no other has no records.
        stored: arrays [images, ...] by name, the answers of frozen networks to each image's evaluation view; pictures
            are then not opened at all.
        cache_gb: keep decoded pictures for training views on disk, in at most so many gigabytes.

    Raises:
        InputError: while iterating, a picture that cannot be opened, unless `tolerant`.
    """

    def __init__(
        self,
        records: Sequence[Sample],
        tokenize: Tokenize,
        *,
        image_size: int,
        images: int = 16,
        phrases: int = 8,
        augment: Augment | None = None,
        shuffle: bool = False,
        seed: int = 0,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        tolerant: bool = False,
        stored: dict[str, Tensor] | None = None,
        cache_gb: float = 0.0,
    ) -> None:
        self.records = records
        self.tokenize = tokenize
        self.image_size = image_size
        self.images_per_batch = images
        self.phrases_per_image = phrases
        self.augment = augment
        self.shuffle = shuffle
        self.seed = seed
        self.workers = workers
        self.rank, self.world = rank, world
        self.tolerant = tolerant
        self.stored = stored or {}
        self.by_image = group_by_image(records)
        self.images = list(self.by_image)
        self.groups = sum(-(-len(rows) // phrases) for rows in self.by_image.values())
        batches = -(-self.groups // images)
        self._length = batches if shuffle else len(range(rank, batches, world))
        self.epoch = 0
        self.cache: ImageCache | None = None
        if cache_gb and augment is not None:
            self.cache = ImageCache(cache_folder() / "pictures", cache_gb, augment.finest(image_size))

    def __len__(self) -> int:
        """Batches an epoch, on this process."""
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        """Yield one epoch's batches; the next call yields the next epoch's."""
        yield from self.batches(self.epoch)
        self.epoch += 1

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from number `start` on."""
        with collector_paused():
            dataset = _Batches(self, epoch, self._plans(epoch)[start:])
        loader = DataLoader(
            dataset,
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=4 if self.workers else None,
            worker_init_fn=_leave_signals,
            generator=torch.Generator(),  # its own: a resumed run must not draw from the student's once more
        )
        for batch in loader:
            if isinstance(batch, InputError):
                raise batch
            yield cast(Batch, batch)

    def _plans(self, epoch: int) -> list[list[Group]]:
        """Split an epoch into batches of groups; every record is in exactly one group."""
        random = np.random.default_rng([self.seed, epoch])
        groups: list[Group] = []
        for number, members in enumerate(self.by_image.values()):
            order = random.permutation(members).tolist() if self.shuffle else members
            parts = -(-len(order) // self.phrases_per_image)
            size, more = divmod(len(order), parts)
            edges = [part * size + min(part, more) for part in range(parts + 1)]
            groups += [(number, part, order[a:b]) for part, (a, b) in enumerate(pairwise(edges))]
        if self.shuffle:
            groups = [groups[i] for i in random.permutation(len(groups))]
        size = self.images_per_batch
        batches = [groups[start : start + size] for start in range(0, len(groups), size)]
        return [self._own_part(batch) for batch in batches] if self.shuffle else batches[self.rank :: self.world]

    def _own_part(self, batch: list[Group]) -> list[Group]:
        first, last = (len(batch) * rank // self.world for rank in (self.rank, self.rank + 1))
        return batch[first:last]

    def load(self, epoch: int, plan: list[Group]) -> Batch:
        """Open, view, tokenise and collate the groups of one batch."""
        shape = (len(plan), 3, self.image_size, self.image_size)
        canvases = torch.from_numpy(
            (np.zeros if self.stored else np.empty)(shape, np.float32)
        )  # numpy asks for huge pages
        pads = [torch.empty(0, self.image_size, self.image_size, dtype=torch.bool)]
        boxes = [torch.empty(0, 4)]
        letterboxes: list[Letterbox] = []
        records: list[Sample] = []
        image_index: list[int] = []
        phrases: list[str] = []
        skipped: list[str] = []
        kept_images: list[int] = []
        for number, part, members in plan:
            rows = [self.records[i] for i in members]
            try:
                view, picture = self._open((epoch, number, part), rows)
            except InputError as error:
                if not self.tolerant:
                    raise
                skipped.append(str(error))
                continue
            pads.append(pad_of(view)[None])
            if picture is not None and self.augment is not None:
                render(picture, view, out=canvases[len(letterboxes)])
            elif picture is not None:
                canvases[len(letterboxes)] = torch.from_numpy(image_of(lay(picture, view), view)[0])
            image_index += [len(letterboxes)] * len(rows)
            canvas_box = view.letterbox.to_canvas(torch.tensor([row.box for row in rows], dtype=torch.float64))
            boxes.append(_clip(canvas_box, view) if self.augment else canvas_box)
            phrases += [swap_sides(row.phrase) if view.letterbox.flip else row.phrase for row in rows]
            letterboxes.append(view.letterbox)
            records += rows
            kept_images.append(number)
        none = torch.empty(0, 1, dtype=torch.int64)
        tokens, token_mask = self.tokenize(phrases) if phrases else (none, none.bool())
        return Batch(
            images=canvases[: len(letterboxes)],
            image_mask=torch.cat(pads),
            tokens=tokens,
            token_mask=token_mask,
            image_index=torch.tensor(image_index, dtype=torch.int64),
            boxes=torch.cat(boxes).float(),
            phrases=phrases,
            letterboxes=letterboxes,
            samples=records,
            skipped=skipped,
            cached={name: values[kept_images] for name, values in self.stored.items()},
        )

    def _open(self, place: tuple[int, int, int], rows: list[Sample]) -> tuple[View, Image.Image | None]:
        """Plan the view of a group at (epoch, image, group), and open its picture unless answers to it are stored."""
        path = self.images[place[1]]
        if self.stored:
            return self._view(place, rows, rows[0].size or _size_of(path)), None
        if self.cache is not None:
            picture, size = self.cache.open(path)
            return self._view(place, rows, size), picture
        with ImageFile(path) as photo:
            view = self._view(place, rows, photo.size)
            return view, photo.decode(view.needs if self.augment else None)

    def _view(self, place: tuple[int, int, int], rows: list[Sample], size: tuple[int, int]) -> View:
        if self.augment is None:
            return evaluation_view(size, self.image_size)
        random = np.random.default_rng([self.seed, *place, 1])
        return training_view(
            size, self.image_size, [r.box for r in rows], [r.phrase for r in rows], self.augment, random
        )


class _Batches(Dataset[Batch | InputError]):
    """The batches of one epoch, by number; a fault is a value, which a worker hands on without a traceback."""

    def __init__(self, loader: GroundingLoader, epoch: int, plans: list[list[Group]]) -> None:
        self.loader, self.epoch, self.plans = loader, epoch, plans

    def __len__(self) -> int:
        return len(self.plans)

    def __getitem__(self, index: int) -> Batch | InputError:
        try:
            return self.loader.load(self.epoch, self.plans[index])
        except InputError as error:
            return error


def _leave_signals(_: int) -> None:
    """In a worker: leave it to the process that it works for to answer what a terminal or scheduler sends to both."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which ends a worker
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _size_of(path: Path) -> tuple[int, int]:
    with ImageFile(path) as photo:  # reads its first bytes only
        return photo.size


def group_by_image(records: Sequence[Sample]) -> dict[Path, list[int]]:
    """Numbers of the records of each image, in order of first appearance."""
    groups: dict[Path, list[int]] = {}
    for number, record in enumerate(records):
        groups.setdefault(record.image, []).append(number)
    return groups


def _clip(box: Tensor, view: View) -> Tensor:
    """Cut [P, 4] cxcywh boxes (0..1 of the canvas) at the edges of what the view shows."""
    left, top, right, bottom = (edge / view.letterbox.side for edge in laid_rectangle(view))
    low, high = torch.tensor([left, top], dtype=box.dtype), torch.tensor([right, bottom], dtype=box.dtype)
    x0y0 = (box[:, :2] - box[:, 2:] / 2).clamp(low, high)
    x1y1 = (box[:, :2] + box[:, 2:] / 2).clamp(low, high)
    return torch.cat([(x0y0 + x1y1) / 2, x1y1 - x0y0], 1)


def make_loader(
    name: str,
    *,
    split: str,
    tokenizer: Any,
    image_size: int = 256,
    length: int = 20,
    root: str | Path | None = None,
    images: int = 16,
    phrases: int = 8,
    seed: int = 0,
) -> GroundingLoader:
    """Make a loader over a data set by name, with training views where the split is `train`.

    Args:
        name, split, root: as for `open_records`.
        tokenizer: of transformers, for example `student.tokenizer`.
        canvas: S in pixels; length: L, most word pieces of a phrase.
        images, phrases: images in a batch, and at most so many phrases of each.
        seed: of order and views.

    Raises:
        InputError: as `open_records`.
    """

    words = PhraseTokenizer.of(tokenizer, length)

    def tokenize(texts: list[str]) -> tuple[Tensor, Tensor]:
        tokens = words(texts)
        return torch.from_numpy(tokens.ids), torch.from_numpy(tokens.padding)

    training = split == "train"
    return GroundingLoader(
        open_samples(name, split=split, root=root),
        tokenize,
        image_size=image_size,
        images=images,
        phrases=phrases,
        augment=Augment(**AugmentSettings().model_dump()) if training else None,
        shuffle=training,
        seed=seed,
    )
