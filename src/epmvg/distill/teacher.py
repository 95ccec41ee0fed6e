"""The teacher: any open_clip model that looks at the same images and phrases and answers with one vector each.

It stands beside the student, never inside it: its weights are not in the student's checkpoint (sec. 3.2).
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import open_clip
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer

from epmvg.distill.patches import patch_grid, patch_vectors
from epmvg.types import Embeddings, InputError
from epmvg.weights import fingerprint

MOST_KNOWN = 100_000
"""Phrases whose answers are remembered: 0.2 GB at width 512."""

View = Literal["canvas", "content"]
Tokenize = Callable[[list[str]], Tensor]
CONFIG, WEIGHTS, TEXT = "open_clip_config.json", "open_clip_model.safetensors", "text"


class ClipTeacher(nn.Module):
    """A CLIP model as teacher.

    Args:
        name: an open_clip architecture ("ViT-B-32"), a folder that `epmvg teacher train` wrote, or an open_clip
            configuration (.json) whose weights file is given as `pretrained`.
        pretrained: open_clip's tag ("openai") or a weights file; None starts an architecture from random weights.
        frozen: never train it, keep it in eval mode and ask it without gradients.
        view: what it sees of an image: the letterboxed "canvas" as the student does, or only its "content", squashed
            to the teacher's square.

    Attributes:
        width: E, of its answers; side: of the square it sees, pixels.

    Raises:
        InputError: there is no such model, or its files cannot be read.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, name: str | Path, pretrained: str | None = None, *, frozen: bool = True, view: View = "canvas"
    ) -> None:
        super().__init__()
        self.clip, self.tokenize, self.width = _open(str(name), pretrained)
        self.frozen = frozen
        self.view: View = view
        self.known: dict[str, Tensor] = {}  # a frozen teacher answers a phrase once
        visual = self.clip.visual
        size = visual.image_size
        self.side: int = size if isinstance(size, int) else size[0]
        self.register_buffer("mean", torch.tensor(visual.image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(visual.image_std).view(3, 1, 1), persistent=False)
        if frozen:
            self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> ClipTeacher:
        super().train(mode and not self.frozen)
        return self

    def forward(self, image: Tensor, phrase: list[str], pad: Tensor | None = None) -> Embeddings:
        """Answer image [I, 3, S, S] in 0..1 (with pad bool [I, S, S]) and P phrases with [I, E] and [P, E]."""
        return Embeddings(self.image(image, pad), self.text(phrase))

    def image(self, image: Tensor, pad: Tensor | None = None) -> Tensor:
        """Answer image [I, 3, S, S] in 0..1 with vectors [I, E], not normalised; content is seen through `pad`."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return cast(Tensor, self.clip.encode_image(self._pixels(image, pad)))

    def tokens(self, image: Tensor, pad: Tensor | None = None) -> Tensor:
        """Answer as `image` does, and for each patch too: [I, 1 + h * w, E], the whole image first.

        Raises:
            InputError: as `patch_vectors`.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            pooled, patches = patch_vectors(self.clip.visual, self._pixels(image, pad))
        return torch.cat([pooled[:, None], patches.flatten(1, 2)], 1)

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of its patches; an InputError as of `patch_vectors`."""
        return patch_grid(self.clip.visual, self.side)

    @property
    def scale(self) -> Tensor:
        """The inverse temperature that its cosines were trained with."""
        return cast(Tensor, self.clip.logit_scale).detach().exp()

    def text(self, phrase: list[str]) -> Tensor:
        """Answer P phrases with vectors [P, E], not normalised; what its tokenizer has no room for is cut."""
        if not self.frozen:
            return self._read(phrase)
        new = [text for text in dict.fromkeys(phrase) if text not in self.known]
        if len(self.known) + len(new) > MOST_KNOWN:
            self.known.clear()
            new = list(dict.fromkeys(phrase))
        if new:
            with torch.no_grad():
                self.known.update(zip(new, self._read(new).float(), strict=True))
        return torch.stack([self.known[text] for text in phrase])

    def _read(self, phrase: list[str]) -> Tensor:
        return cast(Tensor, self.clip.encode_text(self.tokenize(phrase).to(self.mean.device)))

    def _pixels(self, image: Tensor, pad: Tensor | None) -> Tensor:
        """Show it its view of image [I, 3, S, S] -> [I, 3, side, side], normalised."""
        if self.view == "content" and pad is not None:
            squares = torch.cat([self._square(_content(one, hole)) for one, hole in zip(image, pad, strict=True)])
        else:
            squares = self._square(image if pad is None else torch.where(pad[:, None], self.mean, image))
        return (squares - self.mean) / self.std

    def _square(self, image: Tensor) -> Tensor:
        if image.shape[-2:] == (self.side, self.side):
            return image
        return F.interpolate(image, (self.side, self.side), mode="bicubic", antialias=True).clamp(0, 1)

    def fingerprint(self) -> str:
        """Return what identifies its answers: a hash of weights, preprocessing and view."""
        key = hashlib.sha256(f"{self.side} {self.view} {self.mean.tolist()} {self.std.tolist()}".encode())
        return fingerprint(self.state_dict(), key)[:16]


def content_of(pad: Tensor) -> tuple[int, int, int, int]:
    """Return the rectangle of pad bool [S, S] that is not padding: (left, top, right, bottom) in whole pixels."""
    rows, columns = (~pad).any(1).nonzero(), (~pad).any(0).nonzero()
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _content(image: Tensor, pad: Tensor) -> Tensor:
    """Cut one image [3, S, S] to the rectangle that is not padding -> [1, 3, h, w]."""
    left, top, right, bottom = content_of(pad)
    return image[None, :, top:bottom, left:right]


def _open(name: str, pretrained: str | None) -> tuple[Any, Tokenize, int]:
    """Open a model, its tokenizer and the width of its answers."""
    path = Path(name)
    if path.is_dir():
        return _open_folder(path)
    if path.suffix == ".json":
        return _open_files(path, pretrained)
    known = open_clip.list_models()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "`epmvg list teachers` names them."
        raise InputError(f"There is no teacher {name!r}, neither a folder nor an open_clip model; {hint}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is not None and pretrained not in tags and not Path(pretrained).is_file():
        raise InputError(f"The teacher {name} has no weights {pretrained!r}: there are {', '.join(tags) or 'none'}.")
    try:
        model = open_clip.create_model(name, pretrained=pretrained)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"The weights {pretrained!r} of the teacher {name} cannot be loaded: {reason}") from error
    return model, cast(Tokenize, open_clip.get_tokenizer(name)), open_clip.get_model_config(name)["embed_dim"]


def _open_folder(folder: Path) -> tuple[Any, Tokenize, int]:
    config, weights = folder / CONFIG, folder / WEIGHTS
    for file in (config, weights):
        if not file.is_file():
            raise InputError(
                f"{folder} is not a teacher: it has no {file.name}. Give what `epmvg teacher train` wrote."
            )
    return _open_files(config, str(weights))


def _open_files(config: Path, weights: str | None) -> tuple[Any, Tokenize, int]:
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
        settings = settings.get("model_cfg", settings) | {"preprocess": settings.get("preprocess_cfg", {})}
        model, tokenize = build_clip(settings, config.parent)
        if weights is not None:
            model.load_state_dict(safetensors.torch.load_file(weights))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"The teacher {config.parent} cannot be read ({reason}): make or copy it again.") from error
    return model, tokenize, int(settings["embed_dim"])


def build_clip(settings: dict[str, Any], folder: Path) -> tuple[Any, Tokenize]:
    """Build an open_clip model from its configuration; a text tower named by a relative path lies in `folder`."""
    settings = dict(settings)
    preprocess = settings.pop("preprocess", {})
    text = dict(settings["text_cfg"])
    custom = settings.pop("custom_text", False) or bool(text.get("hf_model_name"))
    if text.get("hf_model_name"):
        own = folder / text["hf_model_name"]
        source = str(own if own.is_dir() else text["hf_model_name"])
        text |= {"hf_model_name": source, "hf_model_pretrained": False}
        tokenize = _hf_tokenize(source, text.get("context_length", 77))
    else:
        tokenize = cast(Tokenize, open_clip.SimpleTokenizer(context_length=text.get("context_length", 77)))
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    model = kind(**(settings | {"text_cfg": text}))
    model.visual.image_mean = tuple(preprocess.get("mean", open_clip.OPENAI_DATASET_MEAN))
    model.visual.image_std = tuple(preprocess.get("std", open_clip.OPENAI_DATASET_STD))
    return model, tokenize


def _hf_tokenize(source: str, length: int) -> Tokenize:
    tokenizer = AutoTokenizer.from_pretrained(source)

    def tokenize(phrases: list[str]) -> Tensor:
        encoded = tokenizer(phrases, padding=True, truncation=True, max_length=length, return_tensors="pt")
        return cast(Tensor, encoded["input_ids"])

    return tokenize
