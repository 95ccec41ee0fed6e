"""Tokenizers of teachers, open_clip's and those of transformers, with one call."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

import open_clip
from open_clip.tokenizer import HFTokenizer
from torch import Tensor
from transformers import AutoTokenizer

from epmvg.core.types import InputError

Tokenize = Callable[[list[str]], Tensor]
"""Phrases -> token ids [P, L]."""

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")
CLIP_VOCABULARY = 49_408
"""Tokens of OpenAI's byte-pair encoding, CLIP's own."""

_PROBES = ["a dog", "The LEFT-most man's 2nd coat, in blue!", "zürich \u00e9t\u00e9 \u72d7", "word " * 90]
"""Phrases whose tokens differ between tokenizers."""


class TransformersTokenizer:
    """A tokenizer of transformers, called as open_clip's are: phrases -> token ids [P, L]."""

    def __init__(self, source: Path | str, context_length: int, *, padding: str = "longest") -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self.context_length, self.padding = context_length, padding

    def __call__(self, phrases: list[str]) -> Tensor:
        encoded = self.tokenizer(
            phrases, padding=self.padding, truncation=True, max_length=self.context_length, return_tensors="pt"
        )
        return cast(Tensor, encoded["input_ids"])


@cache
def tokenizer_of_architecture(architecture: str) -> Tokenize:
    return cast(Tokenize, open_clip.get_tokenizer(architecture))


def tokenizer_of_config(text: dict[str, Any], folder: Path) -> Tokenize:
    """Open the tokenizer that a `text_cfg` names; its files are in `folder` or on the hub."""
    length, name, encoder = text.get("context_length", 77), text.get("hf_tokenizer_name"), text.get("hf_model_name")
    options = dict(text.get("tokenizer_kwargs", {}))
    if not name and encoder and (folder / encoder).is_dir():
        return TransformersTokenizer(folder / encoder, length)
    if name or encoder:
        in_folder = any((folder / file).is_file() for file in TOKENIZER_FILES)
        source = folder if in_folder else folder / name if name and (folder / name).is_dir() else name or encoder
        mode = text.get("tokenizer_mode")
        try:
            return cast(Tokenize, HFTokenizer(str(source), context_length=length, tokenizer_mode=mode, **options))
        except Exception as error:  # of the files, the network and the hub
            raise InputError(
                f"{folder} needs the tokenizer {name or encoder}, which cannot be opened ({type(error).__name__}). Copy"
                " its files, tokenizer.json and tokenizer_config.json, into that folder."
            ) from error
    if text.get("vocab_size", CLIP_VOCABULARY) != CLIP_VOCABULARY:
        raise InputError(
            f"{folder} has a vocabulary of {text['vocab_size']}, CLIP's tokenizer one of {CLIP_VOCABULARY}. Name the"
            " model's own by text_cfg.hf_tokenizer_name."
        )
    if options:
        return cast(Tokenize, open_clip.SimpleTokenizer(context_length=length, **options))
    return clip_tokenizer(length)


@cache
def clip_tokenizer(context_length: int) -> Tokenize:
    """Return CLIP's own tokenizer, which takes a while to build."""
    return cast(Tokenize, open_clip.SimpleTokenizer(context_length=context_length))


def describe(tokenize: Any) -> dict[str, Any]:
    """Describe a tokenizer: its kind, context length and a hash of its vocabulary and rules."""
    inner, tokens = getattr(tokenize, "tokenizer", tokenize), tokenize(_PROBES)
    backend = getattr(inner, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else "\n".join(getattr(inner, "encoder", ()))
    rules = hashlib.sha256(f"{words} {tokens.tolist()}".encode()).hexdigest()[:16]
    length = getattr(tokenize, "context_length", tokens.shape[1])
    return {"kind": type(inner).__name__, "context_length": length, "sha256": rules}
