"""From records to batches, grouped by image: a picture is opened and encoded once for all phrases it is asked.

Every order and every view is a pure function of (seed, epoch, image), so a resumed run sees what an unbroken one
would have seen, whatever the number of workers or processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from epmvg.boxes import Letterbox
from epmvg.data.catalog import open_records
from epmvg.data.transforms import (
    Augment,
    View,
    evaluation_view,
    laid_rectangle,
    open_image,
    pad_of,
    render,
    swap_sides,
    training_view,
)
from epmvg.types import Batch, InputError, Record

Tokenize = Callable[[list[str]], tuple[Tensor, Tensor]]
Group = tuple[int, list[int]]  # an image's number, and the numbers of the records that ask about it


class GroundingLoader:
    """Batches of records, grouped by image.

    Args:
        records: the rows; those of one image should name it by the same path.
        tokenize: phrases -> tokens int64 [P, L], token_pad bool [P, L].
        canvas: S in pixels.
        images: images in a batch.
        phrases: at most this many phrases an image in a batch; an image with more comes several times an epoch.
        augment: how training views vary; None gives evaluation views.
        shuffle: draw the order of images and phrases anew each epoch; otherwise rows come as they are.
        seed: of order and views.
        workers: processes that open pictures ahead of the loop; 0 opens them in the loop.
        rank, world: this process's share of the batches, when several train together.
        tolerant: leave out pictures that cannot be opened and name them in `Batch.skipped`, instead of raising.
        stored: arrays [images, ...] by name, the answers of frozen networks to each image's evaluation view; pictures
            are then not opened at all.

    Raises:
        InputError: while iterating, a picture that cannot be opened, unless `tolerant`.
    """

    def __init__(
        self,
        records: Sequence[Record],
        tokenize: Tokenize,
        *,
        canvas: int,
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
    ) -> None:
        self.records = records
        self.tokenize = tokenize
        self.canvas = canvas
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
        self.epoch = 0

    @property
    def images(self) -> list[Path]:
        return list(self.by_image)

    def __len__(self) -> int:
        """Batches an epoch, on this process."""
        return len(self._plans(0))

    def __iter__(self) -> Iterator[Batch]:
        """Yield one epoch's batches; the next call yields the next epoch's."""
        yield from self.batches(self.epoch)
        self.epoch += 1

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from number `start` on."""
        dataset = _Batches(self, epoch, self._plans(epoch)[start:])
        loader = DataLoader(
            dataset,
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=4 if self.workers else None,
            generator=torch.Generator(),  # its own: a resumed run must not draw from the student's once more
        )
        for batch in loader:
            yield cast(Batch, batch)

    def _plans(self, epoch: int) -> list[list[Group]]:
        """Split an epoch into batches of groups; every record is in exactly one group."""
        random = np.random.default_rng([self.seed, epoch])
        groups: list[Group] = []
        for number, members in enumerate(self.by_image.values()):
            order = list(random.permutation(members)) if self.shuffle else members
            parts = -(-len(order) // self.phrases_per_image)
            groups += [(number, [int(i) for i in part]) for part in np.array_split(order, parts)]
        if self.shuffle:
            groups = [groups[i] for i in random.permutation(len(groups))]
        size = self.images_per_batch
        plans = [groups[i : i + size] for i in range(0, len(groups), size)]
        if self.shuffle and len(plans) > self.world:
            plans = plans[: len(plans) // self.world * self.world]  # as many steps on every process
        return plans[self.rank :: self.world]

    def load(self, epoch: int, plan: list[Group]) -> Batch:
        """Open, view, tokenise and collate the groups of one batch."""
        paths = self.images
        pictures, pads, boxes = [], [], []
        letterboxes: list[Letterbox] = []
        records: list[Record] = []
        owner: list[int] = []
        phrases: list[str] = []
        skipped: list[str] = []
        kept_images: list[int] = []
        for number, members in plan:
            rows = [self.records[i] for i in members]
            try:
                image = None if self.stored else open_image(paths[number])
                view, kept = self._view(epoch, number, rows, image)
            except InputError as error:
                if not self.tolerant:
                    raise
                skipped.append(str(error))
                continue
            pads.append(pad_of(view))
            pictures.append(
                torch.zeros(1, 1, 1).expand(3, self.canvas, self.canvas) if image is None else render(image, view)
            )
            rows = [rows[i] for i in kept]
            owner += [len(letterboxes)] * len(rows)
            canvas_box = view.letterbox.to_canvas(torch.tensor([row.box for row in rows], dtype=torch.float64))
            boxes.append(_clip(canvas_box, view) if self.augment else canvas_box)
            phrases += [swap_sides(row.phrase) if view.letterbox.flip else row.phrase for row in rows]
            letterboxes.append(view.letterbox)
            records += rows
            kept_images.append(number)
        if not records:
            raise InputError(f"None of the pictures of a batch can be opened; the first: {skipped[0]}")
        tokens, token_pad = self.tokenize(phrases)
        return Batch(
            image=torch.stack(pictures),
            pad=torch.stack(pads),
            tokens=tokens,
            token_pad=token_pad,
            owner=torch.tensor(owner),
            box=torch.cat(boxes).float(),
            phrase=phrases,
            letterbox=letterboxes,
            records=records,
            skipped=skipped,
            stored={name: values[kept_images] for name, values in self.stored.items()},
        )

    def _view(self, epoch: int, number: int, rows: list[Record], image: Image.Image | None) -> tuple[View, list[int]]:
        size = rows[0].size if image is None else image.size
        if size is None:
            raise InputError(f"{rows[0].image}: stored views need the width and height of each image in its rows.")
        if self.augment is None:
            return evaluation_view(size, self.canvas), list(range(len(rows)))
        random = np.random.default_rng([self.seed, epoch, number, 1])
        return training_view(size, self.canvas, [r.box for r in rows], [r.phrase for r in rows], self.augment, random)


class _Batches(Dataset[Batch]):
    """The batches of one epoch, by number."""

    def __init__(self, loader: GroundingLoader, epoch: int, plans: list[list[Group]]) -> None:
        self.loader, self.epoch, self.plans = loader, epoch, plans

    def __len__(self) -> int:
        return len(self.plans)

    def __getitem__(self, index: int) -> Batch:
        return self.loader.load(self.epoch, self.plans[index])


def group_by_image(records: Sequence[Record]) -> dict[Path, list[int]]:
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
    canvas: int = 256,
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

    def tokenize(texts: list[str]) -> tuple[Tensor, Tensor]:
        encoded = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        return encoded["input_ids"], encoded["attention_mask"] == 0

    training = split == "train"
    return GroundingLoader(
        open_records(name, split=split, root=root),
        tokenize,
        canvas=canvas,
        images=images,
        phrases=phrases,
        augment=Augment(flip=0.5, crop=0.5, scale=0.7, jitter=0.8, move=1.0) if training else None,
        shuffle=training,
        seed=seed,
    )
