"""The teacher: a CLIP or SigLIP that embeds images and phrases into one space.

It stands beside the student, never inside it: its weights are not in the student's checkpoint (sec. 3.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from epmvg.core.cache import content_key
from epmvg.core.hardware import tf32, to_device
from epmvg.core.types import TeacherEmbeddings
from epmvg.distill.clip_checkpoints import open_clip_model
from epmvg.distill.patches import patch_embeddings

_VERSION = 3
"""Of what a teacher computes from the same image, phrase and weights: part of its fingerprint."""


class ClipTeacher(nn.Module):
    """A CLIP or SigLIP as teacher.

    Activation, image preprocessing, tokenizer and context length are those that its weights were trained with. A frozen
    teacher computes in float32, even under autocast.

    Args:
        name: An open_clip architecture ("ViT-B-32"), a folder (open_clip's, Hugging Face's CLIPModel or SiglipModel,
            or one of `epmvg teacher train`), OpenAI's file ("ViT-B-32.pt"), an open_clip configuration (.json), or a
            name on the hub ("hf-hub:OWNER/NAME", "OWNER/NAME").
        pretrained: Of an architecture or configuration: open_clip's tag ("openai"), a weights file, or "random".
        quick_gelu: The activation of a weights file that does not state it (see docs/distill.md).
        frozen: Never train it, keep it in eval mode and compute it without gradients.

    Attributes:
        width: E, of its embeddings.
        preprocess: How its images are preprocessed.
        config, about: What it was built and read from.

    Raises:
        InputError: There is no such model, it has no weights, or its files cannot be read or contradict each other.
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
    ) -> None:
        super().__init__()
        opened = open_clip_model(str(name), None if pretrained is None else str(pretrained), quick_gelu)
        self.clip, self.tokenize, self.width = opened.model, opened.tokenize, opened.width
        self.preprocess, self.config, self.about = opened.preprocess, opened.config, opened.about
        self.frozen = frozen
        self.register_buffer("mean", torch.tensor(self.preprocess.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.preprocess.std).view(3, 1, 1), persistent=False)
        if frozen:
            self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> ClipTeacher:
        super().train(mode and not self.frozen)
        return self

    def forward(self, image: Tensor, phrase: list[str], image_mask: Tensor | None = None) -> TeacherEmbeddings:
        """Embed image [I, 3, S, S] in 0..1 (with image_mask bool [I, S, S]) and P phrases -> [I, E] and [P, E]."""
        return TeacherEmbeddings(self.image(image, image_mask), self.text(phrase))

    def image(self, image: Tensor, image_mask: Tensor | None = None) -> Tensor:
        """Embed image [I, 3, S, S] in 0..1 -> [I, E], not normalized; pixels under `image_mask` have no effect."""
        with self._precision():
            return cast(Tensor, self.clip.encode_image(self._pixels(image, image_mask)))

    def tokens(self, image: Tensor, image_mask: Tensor | None = None) -> Tensor:
        """Embed as `image` does, and each patch too: [I, 1 + h * w, E], the whole image first.

        Raises:
            InputError: As `patch_embeddings`.
        """
        with self._precision():
            pooled, patches = patch_embeddings(self.clip, self._pixels(image, image_mask))
        return torch.cat([pooled[:, None], patches.flatten(1, 2)], 1)

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of its patches; raises an InputError as `patch_embeddings`."""
        training = self.clip.training
        self.clip.eval()  # so that batch norms keep their statistics
        with torch.no_grad():
            pixels = torch.zeros(1, 3, *self.preprocess.size, device=self.mean.device)
            rows, columns = patch_embeddings(self.clip, pixels)[1].shape[1:3]
        self.clip.train(training)
        return rows, columns

    @property
    def scale(self) -> Tensor:
        """The inverse temperature of its cosines in training."""
        return cast(Tensor, self.clip.logit_scale).detach().exp()

    def text(self, phrase: list[str]) -> Tensor:
        """Embed P phrases -> [P, E], not normalized; a phrase is truncated at the context length."""
        with self._precision():
            return cast(Tensor, self.clip.encode_text(to_device(self.tokenize(phrase), self.mean.device)))

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """A frozen teacher computes without gradients and in float32, so that its embeddings can be cached."""
        if not self.frozen:
            yield
            return
        with torch.no_grad(), torch.autocast(self.mean.device.type, enabled=False), tf32(False):
            yield

    def _pixels(self, image: Tensor, image_mask: Tensor | None) -> Tensor:
        """Preprocess image [I, 3, S, S] -> [I, 3, h, w]."""
        image = image.float()
        if image_mask is not None:
            image = torch.where(image_mask[:, None], self.mean, image)
        return (self.preprocess.resize(image) - self.mean) / self.std

    def description(self) -> dict[str, Any]:
        """Return which CLIP this is: its form, configuration, activation, preprocessing and tokenizer."""
        return self.about | {
            "activation": "QuickGELU" if self.config.get("quick_gelu") else "GELU",
            "preprocess": asdict(self.preprocess),
            "frozen": self.frozen,
            "model": self.config,
            "fingerprint": self.fingerprint(),
        }

    def fingerprint(self) -> str:
        """Return what identifies its embeddings: a digest of weights, architecture, preprocessing, tokenizer."""
        weights = [part for item in self.state_dict().items() for part in item]
        settings = [self.config, str(self.clip), asdict(self.preprocess), self.about["tokenizer"]]
        return content_key(_VERSION, settings, *weights).hex()
