"""Distillation targets of a batch: a teacher's embeddings and its similarity maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from epmvg.core.boxes import to_xyxy
from epmvg.core.geometry import Letterbox
from epmvg.core.hardware import to_device
from epmvg.core.types import Batch, SimilarityMap, TeacherEmbeddings
from epmvg.distill.target_cache import CachedTeacher
from epmvg.distill.teacher import ClipTeacher


class DistillationTargets:
    """Compute a teacher's embeddings of batches.

    Args:
        teacher: Embeds the student's input. A `CachedTeacher` looks up phrases that it embedded before.
        from_files: A `CachedTeacher` embeds the image files instead, mirrored where the student's input is.
        embeddings: "image", "text" or both; an encoder that nothing needs does not run.
        dense: Also compute similarity maps.

    Raises:
        InputError: `dense` with a teacher that has no patches.
    """

    def __init__(
        self,
        teacher: ClipTeacher | CachedTeacher,
        *,
        from_files: bool = False,
        embeddings: Sequence[str] = ("image", "text"),
        dense: bool = False,
    ) -> None:
        self.teacher = teacher
        self.clip = teacher if isinstance(teacher, ClipTeacher) else teacher.teacher
        self.from_files, self.embeddings, self.dense = from_files, embeddings, dense
        if dense:
            self.grid = self.clip.grid

    def __call__(self, batch: Batch) -> TeacherEmbeddings:
        """Return embeddings [I, E] and [P, E], and similarity maps [P, h, w]."""
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
        if self.from_files:
            assert isinstance(self.teacher, CachedTeacher)
            flips = [letterbox.flip for letterbox in batch.letterboxes]
            return self.teacher.image_files(batch.image_paths, flips, patches=self.dense)
        encode = self.clip.tokens if self.dense else self.clip.image
        return encode(batch.images, batch.image_mask)

    def _similarity(self, patches: Tensor, text: Tensor, batch: Batch) -> SimilarityMap:
        """Compare the patches [I, h * w, E] of each phrase's image with the phrase [P, E]."""
        text = F.normalize(text.float(), dim=-1)
        patches = F.normalize(patches.float(), dim=-1)
        # No matrix product, which autocast would round.
        cosine = (patches[batch.image_index] * text[:, None]).sum(-1)  # [P, h * w]
        logits = (cosine * self.clip.scale).unflatten(1, self.grid)  # [P, h, w]
        grid_boxes, content = self._locate_grids(batch)
        return SimilarityMap(logits, content[batch.image_index], grid_boxes[batch.image_index])

    def _locate_grids(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the box of each image's patches in the student's input [I, 4], and their image fraction [I, h, w]."""
        device = batch.image_mask.device
        if not self.from_files:
            fractions = F.adaptive_avg_pool2d((~batch.image_mask).float(), self.grid)
            whole = F.pad(fractions.new_ones(2), (2, 0))  # 0, 0, 1, 1
            return whole.expand(len(fractions), -1), fractions
        grid_boxes, contents = [], []
        for letterbox in batch.letterboxes:
            input_box = self.clip.preprocess.input_box(round(letterbox.width), round(letterbox.height))
            grid_boxes.append(_to_student_input(input_box, letterbox))
            contents.append(_image_fraction(input_box, self.grid))
        return to_device(torch.stack(grid_boxes), device), to_device(torch.stack(contents), device)


def _to_student_input(box: Tensor, letterbox: Letterbox) -> Tensor:
    """Convert a box [4], xyxy in 0..1 of the image as the teacher sees it, to 0..1 of the student's input."""
    size = torch.tensor([letterbox.width, letterbox.height] * 2)
    return to_xyxy(replace(letterbox, flip=False).to_input(box * size))  # the teacher's image is mirrored already


def _image_fraction(input_box: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the fraction of each patch that is image and not padding -> [h, w]; the box is in 0..1 of the image."""

    def covered(low: Tensor, high: Tensor, count: int) -> Tensor:
        edges = low + (high - low) * torch.arange(count + 1) / count
        return (edges[1:].clamp(0, 1) - edges[:-1].clamp(0, 1)) / (edges[1] - edges[0])

    x0, y0, x1, y1 = input_box
    return covered(y0, y1, grid[0])[:, None] * covered(x0, x1, grid[1])
