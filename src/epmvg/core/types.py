"""The vocabulary every room shares: what is read, what is batched, what comes out.

Shape letters, everywhere the same: I images, P phrases, S canvas side, N visual tokens, L text tokens,
C branch width, D fused width, E teacher width. `pad` is True where there is nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # rows and errors are also wanted where torch's second of import time is not
    import torch
    from torch import Tensor

    from epmvg.core.geometry import Letterbox

Box = tuple[float, float, float, float]


class InputError(ValueError):
    """Unusable input from the user: one sentence naming the file, key or value, and the cure.

    The command line prints it and exits with status 2.
    """


Progress = Callable[[int, int], None]
"""Called with (done, total) as long work goes on."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of any data set: this phrase means this box of this image."""

    image: Path
    phrase: str
    box: Box  # (x0, y0, x1, y1) in pixels of the original image, EXIF orientation applied
    split: str = ""
    id: str = ""
    size: tuple[int, int] | None = None  # (width, height) of the image where the row states it
    extra: dict[str, Any] = field(default_factory=dict)  # the row's other keys, kept as they were


@dataclass(slots=True)
class Batch:
    """What student, teacher and loss look at together."""

    images: Tensor  # float [I, 3, S, S] in 0..1, mean colour where there is padding
    image_mask: Tensor  # bool [I, S, S]
    tokens: Tensor  # int64 [P, L]
    token_mask: Tensor  # bool [P, L]
    image_index: Tensor  # int64 [P]: the image that each phrase asks about
    boxes: Tensor  # float [P, 4], cxcywh in 0..1 of the canvas
    phrases: list[str]  # as tokenised, so left and right follow a flip
    letterboxes: list[Letterbox]  # [I]
    samples: list[Sample]  # [P]
    cached: dict[str, Tensor] = field(default_factory=dict)  # [I, ...] each: what frozen networks answered before
    skipped: list[str] = field(default_factory=list)  # pictures left out because they cannot be opened, and why

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.images, self.image_mask, self.tokens, self.token_mask, self.image_index

    @property
    def image_paths(self) -> list[Path]:
        """The photo of each image, [I]."""
        owned = dict(zip(self.image_index.tolist(), self.samples, strict=True))
        return [owned[number].image for number in range(len(self.letterboxes))]

    def to(self, device: torch.device | str) -> Batch:
        """Return this batch with its tensors on a device."""
        tensors = ("images", "image_mask", "tokens", "token_mask", "image_index", "boxes")
        moved: dict[str, Any] = {name: getattr(self, name).to(device, non_blocking=True) for name in tensors}
        moved["cached"] = {name: value.to(device, non_blocking=True) for name, value in self.cached.items()}
        return replace(self, **moved)


@dataclass(slots=True)
class GroundingOutput:
    """What a student answers. A foreign student fills the first four and can be distilled like ours."""

    box: Tensor  # [P, 4], cxcywh in 0..1 of the canvas
    visual: Tensor  # [P, D], [VLS] after fusion
    text: Tensor  # [P, D], [CLS] after fusion
    image_index: Tensor  # int64 [P]
    reg_box: Tensor | None = None  # [P, 4], the paper's box from [REG] where `box` is the dense head's
    heatmap: Tensor | None = None  # [P, N] logits over visual tokens, -inf at padding
    similarity: Tensor | None = None  # [P, N] logits: phrase against visual tokens, -inf at padding
    token_boxes: Tensor | None = None  # [P, N, 4] the box each visual token votes for, cxcywh
    grid: tuple[int, int] | None = None  # (rows, columns) of the N visual tokens
    iou_box: Tensor | None = None  # [P, 4], the box that `score` is about: the one inference reads
    iou_features: Tensor | None = None  # [P, F], what the score head looks at; no gradient passes
    iou_logits: Tensor | None = None  # [P] logits of the expected IoU of `judged`
    attention: Tensor | None = None  # [P, 1 + N + L] shares of [REG]'s attention in the last layer, only on request
    negative_iou_logits: Tensor | None = (
        None  # [A] the same logits for phrases that do not belong to the image they were asked of
    )


@dataclass(slots=True)
class SimilarityMap:
    """Where in its image a teacher sees each phrase, on a grid of its own."""

    logits: Tensor  # [P, h, w], cosine of patch and sentence at the teacher's temperature
    content: Tensor  # [P, h, w], share of a patch that is picture and not padding, 0..1
    frame: Tensor  # [P, 4], where the grid lies: xyxy in 0..1 of the student's canvas


@dataclass(slots=True)
class TeacherEmbeddings:
    """What a teacher answers: [DIE] and [DTE] of the paper; None is what it was not asked."""

    image: Tensor | None = None  # [I, E]
    text: Tensor | None = None  # [P, E]
    similarity: SimilarityMap | None = None


class Teacher(Protocol):
    """Anything that answers images and phrases with one vector each."""

    def __call__(self, image: Tensor, phrase: list[str], image_mask: Tensor | None = None) -> TeacherEmbeddings: ...


@dataclass(frozen=True, slots=True)
class Prediction:
    """One phrase looked for in one image."""

    phrase: str
    box: Box  # (x0, y0, x1, y1) in pixels of the image as it is displayed; the best guess even where not found
    score: float  # 0..1, how sure the model is of the box: a probability once the run is calibrated
    found: bool = True  # False: the score is below the bound that was asked for, or no word of the phrase is known
    truncated: bool = False  # the phrase is longer than the model reads: its end had no say
    unknown: bool = False  # the model knows no word of the phrase

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `truncated` and `unknown` only where they are true."""
        said: dict[str, Any] = {"phrase": self.phrase, "box": list(self.box), "score": self.score, "found": self.found}
        return said | {key: True for key in ("truncated", "unknown") if getattr(self, key)}
