"""Data types of several packages: samples, batches, outputs, predictions, and the error of unusable input.

Shape letters: I images, P phrases, S input size, N visual tokens, L text tokens, C encoder width, D fusion width,
E teacher width. Masks are True at padding.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing torch takes a second
    import torch
    from torch import Tensor

    from epmvg.core.geometry import Letterbox

Box = tuple[float, float, float, float]


class InputError(ValueError):
    """Unusable input: the message names the file, key or value and says what to do.

    The command line prints it and exits with status 2.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a sentence for messages: the closest of the known words, or all of them where none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"There are {', '.join(known)}."


Report = Callable[[dict[str, Any]], None]
"""Called with each row of a training's metrics as it is written, and with rows on its progress."""

Progress = Callable[[int, int], None]
"""Called with (done, total) during long work."""


WHOLE_IMAGE: Box = (0.0, 0.0, math.inf, math.inf)
"""The box of an unlabeled sample."""


@dataclass(frozen=True, slots=True)
class Sample:
    """An image, a phrase and the box of what the phrase refers to."""

    image: Path
    phrase: str
    box: Box  # (x0, y0, x1, y1) in pixels of the original image, EXIF orientation applied
    split: str = ""
    id: str = ""
    size: tuple[int, int] | None = None  # (width, height) of the image where the annotation states it
    extra: dict[str, Any] = field(default_factory=dict)  # other keys of the annotation, unchanged
    weight: float = 1.0  # in the training loss; 0: unlabeled, only the distillation losses apply


@dataclass(slots=True)
class Batch:
    """Inputs of student, teacher and loss."""

    images: Tensor  # float [I, 3, S, S] in 0..1, mean color at padding
    image_mask: Tensor  # bool [I, S, S]
    tokens: Tensor  # int64 [P, L]
    token_mask: Tensor  # bool [P, L]
    image_index: Tensor  # int64 [P], the image that each phrase queries
    boxes: Tensor  # float [P, 4], cxcywh in 0..1 of the network input
    phrases: list[str]  # as tokenized: left and right are swapped where the image is flipped
    letterboxes: list[Letterbox]  # [I]
    samples: list[Sample]  # [P]
    image_paths: list[Path]  # [I]
    num_unpadded: int | None = None  # as `Grounder.num_unpadded`, where it is known
    cached: dict[str, Tensor] = field(default_factory=dict)  # [I, ...] each, features of frozen networks
    skipped: list[str] = field(default_factory=list)  # unreadable images, one sentence each
    weights: Tensor | None = None  # float [P], of the samples; None where each is 1

    @property
    def weight(self) -> float:
        """Sum of the samples' weights in the losses of boxes."""
        return sum(sample.weight for sample in self.samples)

    @property
    def distillation_weight(self) -> float:
        """Sum of the samples' weights in the distillation losses, where an unlabeled one has weight 1."""
        return sum(sample.weight or 1.0 for sample in self.samples)

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The arguments of the student's forward pass."""
        return self.images, self.image_mask, self.tokens, self.token_mask, self.image_index

    def to(self, device: torch.device | str) -> Batch:
        """Return this batch with its tensors on a device; nothing waits for a copy from pinned memory."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Return this batch with its tensors in pinned memory (a `DataLoader` calls it)."""
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> Batch:
        names = ("images", "image_mask", "tokens", "token_mask", "image_index", "boxes")
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in names}
        changed["weights"] = None if self.weights is None else change(self.weights)
        return replace(self, **changed, cached={name: change(tensor) for name, tensor in self.cached.items()})


@dataclass(slots=True)
class GroundingOutput:
    """Output of a student; any network that sets the first four fields can be distilled."""

    box: Tensor  # [P, 4], cxcywh in 0..1 of the network input
    visual: Tensor  # [P, D], [VLS] after fusion
    text: Tensor  # [P, D], [CLS] after fusion
    image_index: Tensor  # int64 [P]
    reg_box: Tensor | None = None  # [P, 4], the box from [REG] where `box` is the dense head's
    heatmap: Tensor | None = None  # [P, N] logits over visual tokens, -inf at padding
    similarity: Tensor | None = None  # [P, N] logits of phrase and visual tokens, -inf at padding
    token_boxes: Tensor | None = None  # [P, N, 4] the box predicted from each visual token, cxcywh
    grid: tuple[int, int] | None = None  # (rows, columns) of the N visual tokens
    iou_box: Tensor | None = None  # [P, 4], the box whose IoU `iou_logits` predict
    iou_features: Tensor | None = None  # [P, F], inputs of the IoU head, detached
    iou_logits: Tensor | None = None  # [P], of the IoU of `iou_box`
    attention: Tensor | None = None  # [P, 1 + N + L] attention of [REG] in the last layer, on request
    negative_iou_logits: Tensor | None = None  # [A], the same for negative pairs
    negative_similarity: Tensor | None = None  # [A, n] as `similarity`, of negative pairs, without most padding


@dataclass(slots=True)
class SimilarityMap:
    """Similarity of phrases and patches of a teacher, on the teacher's grid."""

    logits: Tensor  # [P, h, w], cosine of patch and phrase embeddings times the logit scale
    content: Tensor  # [P, h, w], fraction of a patch that is not padding
    grid_box: Tensor  # [P, 4], the area of the grid, xyxy in 0..1 of the student's input


@dataclass(slots=True)
class TeacherEmbeddings:
    """[DIE] and [DTE] of the paper; None where not requested."""

    image: Tensor | None = None  # [I, E]
    text: Tensor | None = None  # [P, E]
    similarity: SimilarityMap | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of several boxes for a phrase."""

    box: Box  # (x0, y0, x1, y1) in pixels of the upright image
    score: float  # confidence in 0..1


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction for one phrase in one image."""

    phrase: str
    box: Box  # (x0, y0, x1, y1) in pixels of the upright image; the best one also where not found
    score: float  # confidence in 0..1; the probability that the box is correct once the run is calibrated
    found: bool = True  # the confidence reaches `min_score`, and a word of the phrase is in the vocabulary
    truncated: bool = False  # the phrase is longer than the model's input
    unknown: bool = False  # no word of the phrase is in the vocabulary
    candidates: tuple[Candidate, ...] = ()  # with `top_k` > 1: falling scores, the first is `box`

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `truncated`, `unknown` and `candidates` only where there is something."""
        values: dict[str, Any] = {"phrase": self.phrase, "box": list(self.box), "score": self.score}
        values["found"] = self.found
        if self.candidates:
            values["candidates"] = [{"box": list(one.box), "score": one.score} for one in self.candidates]
        return values | {key: True for key in ("truncated", "unknown") if getattr(self, key)}
