"""Distillation targets of a batch: a teacher's embeddings and the maps of where it finds each phrase."""

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
from epmvg.distill.teacher import ClipTeacher


class DistillationTargets:
    """Compute a teacher's embeddings of batches.

    Args:
        teacher: A `CachedTeacher` looks up what it computed before.
        from_files: The teacher takes the plain image, mirrored where the student's is, and not the student's input.
        fixed_images: The student's inputs are the same in every epoch, so their embeddings are worth caching.
        embeddings: "image", "text" or both; an encoder that nothing needs does not run.
        dense: Also compute similarity maps.

    Raises:
        InputError: `from_files` without a cached teacher, or `dense` with a teacher that has no patches.
    """

    def __init__(
        self,
        teacher: ClipTeacher | CachedTeacher,
        *,
        from_files: bool = False,
        fixed_images: bool = False,
        embeddings: Sequence[str] = ("image", "text"),
        dense: bool = False,
    ) -> None:
        self.teacher = teacher
        self.clip = teacher if isinstance(teacher, ClipTeacher) else teacher.teacher
        self.from_files, self.fixed_images = from_files, fixed_images
        self.embeddings, self.dense = embeddings, dense
        if from_files and self.clip is teacher:
            raise InputError("A teacher of plain images needs a cache: give a CachedTeacher.")
        if dense:
            self.grid = self.clip.grid

    def __call__(self, batch: Batch) -> TeacherEmbeddings:
        """Return embeddings [I, E] and [P, E], and maps [P, h, w]."""
        targets = TeacherEmbeddings()
        if "text" in self.embeddings or self.dense:
            text = self.teacher.text(batch.phrases)  # [P, E]
            targets.text = text if "text" in self.embeddings else None
        if self.dense:
            tokens = self._encode_images(batch)  # [I, 1 + h * w, E]
            targets.similarity = self._similarity(tokens[:, 1:], text, batch)
            targets.image = tokens[:, 0] if "image" in self.embeddings else None
        elif "image" in self.embeddings:
            targets.image = self._encode_images(batch)  # [I, E]
        return targets

    def _encode_images(self, batch: Batch) -> Tensor:
        if isinstance(self.teacher, CachedTeacher) and self.from_files:
            flips = [letterbox.flip for letterbox in batch.letterboxes]
            return self.teacher.image_files(batch.image_paths, flips, patches=self.dense)
        teacher = self.teacher if self.fixed_images else self.clip
        encode = teacher.tokens if self.dense else teacher.image
        return encode(batch.images, batch.image_mask)

    def _similarity(self, patches: Tensor, text: Tensor, batch: Batch) -> SimilarityMap:
        """Compare the patches [I, h * w, E] of each phrase's image with the phrase [P, E]."""
        text = F.normalize(text.float(), dim=-1)
        patches = F.normalize(patches.float(), dim=-1)
        # No matrix product, which autocast would round.
        cosine = (patches[batch.image_index] * text[:, None]).sum(-1)  # [P, h * w]
        frame, content = self._frames(batch)
        logits = (cosine * self.clip.scale).unflatten(1, self.grid)  # [P, h, w]
        return SimilarityMap(logits, content[batch.image_index], frame[batch.image_index])

    def _frames(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return where each image's patches lie in the student's input [I, 4], and their image fraction [I, h, w]."""
        preprocess, device = self.clip.preprocess, batch.image_mask.device
        if not self.from_files:
            fractions = F.adaptive_avg_pool2d((~batch.image_mask).float(), self.grid)
            return torch.tensor([0.0, 0.0, 1.0, 1.0], device=device).expand(len(fractions), -1), fractions
        frames = torch.stack([image_frame(letterbox, preprocess) for letterbox in batch.letterboxes])
        inside = [preprocess.frame(round(one.width), round(one.height)) for one in batch.letterboxes]
        fractions = torch.stack([_image_fraction(frame, self.grid) for frame in inside])
        return frames.to(device), fractions.to(device)


def image_frame(letterbox: Letterbox, preprocess: Preprocess) -> Tensor:
    """Return where a teacher's input lies in the student's, mirrored with it: [4], xyxy in 0..1.

    Args:
        letterbox: Of the image in the student's input.
        preprocess: Of the teacher.
    """
    size = torch.tensor([letterbox.width, letterbox.height] * 2)
    inside = preprocess.frame(round(letterbox.width), round(letterbox.height))
    return to_xyxy(replace(letterbox, flip=False).to_input(inside * size))


def _image_fraction(frame: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the fraction of each patch that is image and not padding, of a frame [4] in 0..1 of the image: [h, w]."""

    def covered(low: Tensor, high: Tensor, count: int) -> Tensor:
        edges = low + (high - low) * torch.arange(count + 1) / count
        return (edges[1:].clamp(0, 1) - edges[:-1].clamp(0, 1)) / (edges[1] - edges[0])

    return covered(frame[1], frame[3], grid[0])[:, None] * covered(frame[0], frame[2], grid[1])
