"""What a teacher is asked about a batch: which of its towers, about which view, and where its patches lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from epmvg.boxes import to_xyxy
from epmvg.data.photos import open_image
from epmvg.data.transforms import pad_of, render
from epmvg.data.views import evaluation_view
from epmvg.distill.cache import CachedTeacher
from epmvg.distill.teacher import ClipTeacher, content_of
from epmvg.letterbox import Letterbox
from epmvg.types import Batch, Embeddings, InputError, SimilarityMap


class Lesson:
    """Ask a teacher about batches.

    Args:
        teacher: a cached one is asked once, and then looks it up.
        photo: it looks at the plain photo, whatever the student's view shows of it; else at that view.
        fixed: the student's views come again, so that answers to them are worth keeping.
        sides: the vectors wanted; the tower of a side that nobody wants is not asked.
        dense: answer with similarity maps too.

    Raises:
        InputError: `photo` without a cached teacher, or `dense` with a teacher that has no patches.
    """

    def __init__(
        self,
        teacher: ClipTeacher | CachedTeacher,
        *,
        photo: bool = False,
        fixed: bool = False,
        sides: Sequence[str] = ("image", "text"),
        dense: bool = False,
    ) -> None:
        self.teacher = teacher
        self.clip = teacher if isinstance(teacher, ClipTeacher) else teacher.teacher
        self.photo, self.fixed = photo, fixed
        self.sides, self.dense = sides, dense
        if photo and self.clip is teacher:
            raise InputError("A teacher that looks at photos keeps its answers: give a CachedTeacher.")
        if dense:
            self.grid = self.clip.grid

    def __call__(self, batch: Batch) -> Embeddings:
        """Answer what is wanted: [I, E], [P, E] and maps [P, h, w]."""
        answer = Embeddings()
        if self.dense:
            tokens = self._look(batch)  # [I, 1 + h * w, E]
            answer.similarity = self._similarity(tokens[:, 1:], batch)
            answer.image = tokens[:, 0] if "image" in self.sides else None
        elif "image" in self.sides:
            answer.image = self._look(batch)  # [I, E]
        if "text" in self.sides:
            answer.text = self.teacher.text(batch.phrase)  # [P, E]
        return answer

    def _look(self, batch: Batch) -> Tensor:
        if isinstance(self.teacher, CachedTeacher) and self.photo:
            return self.teacher.photos(batch.photos, photo_view(self.clip.side), patches=self.dense)
        looks = self.teacher if self.fixed else self.clip
        return looks.tokens(batch.image, batch.pad) if self.dense else looks.image(batch.image, batch.pad)

    def _similarity(self, patches: Tensor, batch: Batch) -> SimilarityMap:
        """Compare patches [I, h * w, E] with the sentences about them."""
        # A photo is not mirrored when the student's view is: there, left is what the row calls left.
        phrases = [record.phrase for record in batch.records] if self.photo else batch.phrase
        sentences = F.normalize(self.teacher.text(phrases).float(), dim=-1)
        patches = F.normalize(patches.float(), dim=-1)
        # No matrix product, which autocast would round.
        cosine = (patches[batch.owner] * sentences[:, None]).sum(-1)  # [P, h * w]
        frame, content = self._frames(batch)
        logits = (cosine * self.clip.scale).unflatten(1, self.grid)  # [P, h, w]
        return SimilarityMap(logits, content[batch.owner], frame[batch.owner])

    def _frames(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Where each image's grid of patches lies on the student's canvas [I, 4], and what is picture [I, h, w]."""
        device = batch.pad.device
        images, side = len(batch.pad), batch.pad.shape[1]
        if self.photo:
            frames = torch.stack([photo_frame(letterbox, self.clip.side) for letterbox in batch.letterbox])
            sizes = [(round(letterbox.width), round(letterbox.height)) for letterbox in batch.letterbox]
            pads = torch.stack([pad_of(evaluation_view(size, self.clip.side)) for size in sizes])
            return frames.to(device), self._share(pads).to(device)
        if self.clip.view == "content":
            frames = torch.tensor([content_of(pad) for pad in batch.pad], device=device) / side
            return frames, torch.ones(images, *self.grid, device=device)
        return torch.tensor([0.0, 0.0, 1.0, 1.0], device=device).expand(images, -1), self._share(batch.pad)

    def _share(self, pad: Tensor) -> Tensor:
        """Share of each patch that is picture, of pad bool [I, S, S] -> [I, h, w]."""
        return F.adaptive_avg_pool2d((~pad).float(), self.grid)


def photo_frame(letterbox: Letterbox, side: int) -> Tensor:
    """Where the square a teacher sees of a photo, its evaluation view, lies on a student's canvas.

    Args:
        letterbox: of the photo on the student's canvas.
        side: of the teacher's square, pixels.

    Returns:
        [4], xyxy in 0..1 of the canvas; x0 > x1 where the student's view is mirrored.
    """
    whole = evaluation_view((round(letterbox.width), round(letterbox.height)), side).letterbox
    square = torch.tensor([-whole.left, -whole.top, side - whole.left, side - whole.top]) / whole.scale_x
    frame = to_xyxy(letterbox.to_canvas(square))
    return frame[[2, 1, 0, 3]] if letterbox.flip else frame


def photo_view(side: int) -> Callable[[Path], tuple[Tensor, Tensor]]:
    """Return what opens a photo as the evaluation view on a canvas of `side` pixels."""

    def view_of(path: Path) -> tuple[Tensor, Tensor]:
        photo = open_image(path)
        view = evaluation_view(photo.size, side)
        return render(photo, view), pad_of(view)

    return view_of
