"""The teacher: a CLIP or SigLIP of any form that embeds images and phrases into one vector each.

It stands beside the student, never inside it: its weights are not in the student's checkpoint (sec. 3.2).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from epmvg.core.types import TeacherEmbeddings
from epmvg.distill.clip_checkpoints import open_clip_model
from epmvg.distill.patches import patch_grid, patch_vectors
from epmvg.models.weights_file import fingerprint

VERSION = 2
"""Of what a teacher computes from the same image, phrase and weights: part of its fingerprint."""

View = Literal["letterboxed", "cropped"]


class ClipTeacher(nn.Module):
    """A CLIP or SigLIP as teacher.

    Activation, image preprocessing, tokenizer and context length are those that its weights were trained with. A frozen
    teacher computes in float32, whatever autocast is on.

    Args:
        name: an open_clip architecture ("ViT-B-32"), a folder (open_clip's, Hugging Face's CLIPModel or SiglipModel,
            or what `epmvg teacher train` wrote), OpenAI's file ("ViT-B-32.pt"), an open_clip configuration (.json), or
            a name on the hub ("hf-hub:OWNER/NAME", "OWNER/NAME").
        pretrained: of an architecture or configuration: open_clip's tag ("openai"), a weights file, or "random".
        quick_gelu: the activation of a weights file that leaves it open (see docs/distill.md).
        frozen: never train it, keep it in eval mode and compute it without gradients.
        view: what it sees of an image: the "letterboxed" image as the student does, or only its "cropped" content,
            preprocessed as a photo.

    Attributes:
        width: E, of its vectors; preprocess: how its images are made; config, about: what it was built and read from.

    Raises:
        InputError: there is no such model, it has no weights, or its files cannot be read or disagree.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str | Path,
        pretrained: str | Path | None = None,
        *,
        quick_gelu: bool | None = None,
        frozen: bool = True,
        view: View = "letterboxed",
    ) -> None:
        super().__init__()
        opened = open_clip_model(str(name), None if pretrained is None else str(pretrained), quick_gelu)
        self.clip, self.tokenize, self.width = opened.model, opened.tokenize, opened.width
        self.preprocess, self.config, self.about = opened.preprocess, opened.config, opened.about
        self.frozen = frozen
        self.view: View = view
        self.register_buffer("mean", torch.tensor(self.preprocess.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.preprocess.std).view(3, 1, 1), persistent=False)
        if frozen:
            self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> ClipTeacher:
        super().train(mode and not self.frozen)
        return self

    def forward(self, image: Tensor, phrase: list[str], image_mask: Tensor | None = None) -> TeacherEmbeddings:
        """Embed image [I, 3, S, S] in 0..1 (with pad bool [I, S, S]) and P phrases -> [I, E] and [P, E]."""
        return TeacherEmbeddings(self.image(image, image_mask), self.text(phrase))

    def image(self, image: Tensor, image_mask: Tensor | None = None) -> Tensor:
        """Embed image [I, 3, S, S] in 0..1 -> [I, E], not normalised; what lies under `pad` is not seen."""
        with self._computing():
            return cast(Tensor, self.clip.encode_image(self._pixels(image, image_mask)))

    def tokens(self, image: Tensor, image_mask: Tensor | None = None) -> Tensor:
        """Embed as `image` does, and each patch too: [I, 1 + h * w, E], the whole image first.

        Raises:
            InputError: as `patch_vectors`.
        """
        with self._computing():
            pooled, patches = patch_vectors(self.clip, self._pixels(image, image_mask))
        return torch.cat([pooled[:, None], patches.flatten(1, 2)], 1)

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of its patches; an InputError as of `patch_vectors`."""
        return patch_grid(self.clip, self.preprocess.size)

    @property
    def scale(self) -> Tensor:
        """The inverse temperature that its cosines were trained with."""
        return cast(Tensor, self.clip.logit_scale).detach().exp()

    def text(self, phrase: list[str]) -> Tensor:
        """Embed P phrases -> [P, E], not normalised; what its context length has no room for is cut."""
        with self._computing():
            return self._read(phrase)

    def _read(self, phrase: list[str]) -> Tensor:
        return cast(Tensor, self.clip.encode_text(self.tokenize(phrase).to(self.mean.device)))

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """A frozen teacher always computes alike: without gradients, in float32."""
        if not self.frozen:
            yield
            return
        with torch.no_grad(), torch.autocast(self.mean.device.type, enabled=False):
            yield

    def _pixels(self, image: Tensor, image_mask: Tensor | None) -> Tensor:
        """Preprocess its view of image [I, 3, S, S] -> [I, 3, h, w]."""
        image = image.float()
        if self.view == "cropped":
            parts = [
                image[i : i + 1] if image_mask is None else _content(image[i], image_mask[i]) for i in range(len(image))
            ]
            seen = torch.cat([self.preprocess.resize(part) for part in parts])
        else:
            seen = image if image_mask is None else torch.where(image_mask[:, None], self.mean, image)
            seen = self.preprocess.scaled(seen, self.preprocess.size)
        return (seen - self.mean) / self.std

    def description(self) -> dict[str, Any]:
        """Return which CLIP this is: its form, configuration, activation, preprocessing and tokenizer."""
        activation = "QuickGELU" if self.config.get("quick_gelu") else "GELU"
        return self.about | {
            "activation": activation,
            "preprocess": asdict(self.preprocess),
            "view": self.view,
            "frozen": self.frozen,
            "model": self.config,
            "fingerprint": self.fingerprint(),
        }

    def fingerprint(self) -> str:
        """Return what identifies its vectors: a hash of weights, architecture, preprocessing, tokenizer and view."""
        architecture = [self.config, str(self.clip), asdict(self.preprocess), self.about["tokenizer"], self.view]
        key = hashlib.sha256(json.dumps([VERSION, *architecture], sort_keys=True, default=str).encode())
        return fingerprint(self.state_dict(), key)[:16]


def content_of(image_mask: Tensor) -> tuple[int, int, int, int]:
    """Return the rectangle of pad bool [S, S] that is not padding: (left, top, right, bottom) in whole pixels."""
    rows, columns = (~image_mask).any(1).nonzero(), (~image_mask).any(0).nonzero()
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _content(image: Tensor, image_mask: Tensor) -> Tensor:
    """Cut one image [3, S, S] to the rectangle that is not padding -> [1, 3, h, w]."""
    left, top, right, bottom = content_of(image_mask)
    return image[None, :, top:bottom, left:right]
