"""What a teacher is asked about a batch: which of its towers, about which view, and where its patches lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from epmvg.core.boxes import to_xyxy
from epmvg.core.geometry import Letterbox
from epmvg.core.types import Batch, InputError, SimilarityMap, TeacherEmbeddings
from epmvg.distill.preprocess import Preprocess
from epmvg.distill.target_cache import CachedTeacher
from epmvg.distill.teacher import ClipTeacher, content_of


class Lesson:
    """Ask a teacher about batches.

    Args:
        teacher: a cached one is asked once, and then looks it up.
        photo: it sees the plain photo, mirrored where the student's view is, whatever else that view shows of it;
            else that view.
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

    def __call__(self, batch: Batch) -> TeacherEmbeddings:
        """Answer what is wanted: [I, E], [P, E] and maps [P, h, w]."""
        answer = TeacherEmbeddings()
        if "text" in self.sides or self.dense:
            text = self.teacher.text(batch.phrases)  # [P, E]
            answer.text = text if "text" in self.sides else None
        if self.dense:
            tokens = self._look(batch)  # [I, 1 + h * w, E]
            answer.similarity = self._similarity(tokens[:, 1:], text, batch)
            answer.image = tokens[:, 0] if "image" in self.sides else None
        elif "image" in self.sides:
            answer.image = self._look(batch)  # [I, E]
        return answer

    def _look(self, batch: Batch) -> Tensor:
        if isinstance(self.teacher, CachedTeacher) and self.photo:
            flips = [letterbox.flip for letterbox in batch.letterboxes]
            return self.teacher.photos(batch.image_paths, flips, patches=self.dense)
        looks = self.teacher if self.fixed else self.clip
        return (
            looks.tokens(batch.images, batch.image_mask) if self.dense else looks.image(batch.images, batch.image_mask)
        )

    def _similarity(self, patches: Tensor, text: Tensor, batch: Batch) -> SimilarityMap:
        """Compare patches [I, h * w, E] with the phrases [P, E] about them."""
        text = F.normalize(text.float(), dim=-1)
        patches = F.normalize(patches.float(), dim=-1)
        # No matrix product, which autocast would round.
        cosine = (patches[batch.image_index] * text[:, None]).sum(-1)  # [P, h * w]
        frame, content = self._frames(batch)
        logits = (cosine * self.clip.scale).unflatten(1, self.grid)  # [P, h, w]
        return SimilarityMap(logits, content[batch.image_index], frame[batch.image_index])

    def _frames(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Where each image's grid of patches lies on the student's canvas [I, 4], and what is picture [I, h, w]."""
        device = batch.image_mask.device
        images, side = len(batch.image_mask), batch.image_mask.shape[1]
        preprocess = self.clip.preprocess
        if self.photo:
            frames = torch.stack([photo_frame(letterbox, preprocess) for letterbox in batch.letterboxes])
            inside = [preprocess.frame(round(one.width), round(one.height)) for one in batch.letterboxes]
        elif self.clip.view == "cropped":
            edges = [content_of(image_mask) for image_mask in batch.image_mask]
            inside = [preprocess.frame(right - left, bottom - top) for left, top, right, bottom in edges]
            start = torch.tensor([[left, top] * 2 for left, top, _, _ in edges]) / side
            extent = torch.tensor([[right - left, bottom - top] * 2 for left, top, right, bottom in edges]) / side
            frames = start + torch.stack(inside) * extent
        else:
            share = F.adaptive_avg_pool2d((~batch.image_mask).float(), self.grid)
            return torch.tensor([0.0, 0.0, 1.0, 1.0], device=device).expand(images, -1), share
        return frames.to(device), torch.stack([_share(frame, self.grid) for frame in inside]).to(device)


def photo_frame(letterbox: Letterbox, preprocess: Preprocess) -> Tensor:
    """Where a teacher's preprocessed photo lies on a student's canvas, mirrored with it.

    Args:
        letterbox: of the photo on the student's canvas.
        preprocess: of the teacher.

    Returns:
        [4], xyxy in 0..1 of the canvas.
    """
    whole = torch.tensor([letterbox.width, letterbox.height] * 2)
    inside = preprocess.frame(round(letterbox.width), round(letterbox.height))
    return to_xyxy(replace(letterbox, flip=False).to_input(inside * whole))


def _share(frame: Tensor, grid: tuple[int, int]) -> Tensor:
    """Share of each patch that is picture, of a frame [4] (xyxy in 0..1 of the picture) -> [h, w]."""

    def covered(low: Tensor, high: Tensor, count: int) -> Tensor:
        edges = low + (high - low) * torch.arange(count + 1) / count
        return (edges[1:].clamp(0, 1) - edges[:-1].clamp(0, 1)) / (edges[1] - edges[0])

    return covered(frame[1], frame[3], grid[0])[:, None] * covered(frame[0], frame[2], grid[1])
