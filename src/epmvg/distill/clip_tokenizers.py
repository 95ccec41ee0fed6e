"""Tokenizers of teachers: open_clip's and those of transformers, called alike and told apart by their rules."""

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
"""Phrases -> tokens [P, L]."""

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")
CLIP_WORDS = 49_408
"""Tokens of OpenAI's byte-pair encoding, CLIP's own."""

PROBES = ["a dog", "The LEFT-most man's 2nd coat, in blue!", "zürich \u00e9t\u00e9 \u72d7", "word " * 90]
"""Phrases whose tokens tell tokenizers apart."""


class TransformersTokenizer:
    """A tokenizer of transformers, called as open_clip's are: phrases -> tokens [P, L]."""

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
    try:
        return cast(Tokenize, open_clip.get_tokenizer(architecture))
    except Exception as error:  # of the network, the hub and a server
        raise InputError(
            f"The tokenizer of the teacher {architecture} could not be downloaded ({type(error).__name__}): check the"
            " network, or give a local folder that holds it."
        ) from error


def tokenizer_of_config(text: dict[str, Any], folder: Path) -> Tokenize:
    """Open the tokenizer that a configuration names; its files lie in `folder` or on the hub."""
    length, named, tower = text.get("context_length", 77), text.get("hf_tokenizer_name"), text.get("hf_model_name")
    if not named and tower and (folder / tower).is_dir():
        return TransformersTokenizer(folder / tower, length)
    named = named or tower
    options = dict(text.get("tokenizer_kwargs", {}))
    if named:
        here = any((folder / file).is_file() for file in TOKENIZER_FILES)
        try:
            return cast(
                Tokenize,
                HFTokenizer(
                    str(folder) if here else inside(named, folder),
                    context_length=length,
                    tokenizer_mode=text.get("tokenizer_mode"),
                    **options,
                ),
            )
        except Exception as error:  # of the files, the network and the hub
            raise InputError(
                f"{folder} needs the tokenizer {named}, which cannot be opened ({type(error).__name__}): copy its"
                " files, tokenizer.json and tokenizer_config.json, into that folder."
            ) from error
    if text.get("vocab_size", CLIP_WORDS) != CLIP_WORDS:
        raise InputError(
            f"{folder} has a vocabulary of {text['vocab_size']}, CLIP's tokenizer one of {CLIP_WORDS}: name the model's"
            " own by text_cfg.hf_tokenizer_name."
        )
    return (
        cast(Tokenize, open_clip.SimpleTokenizer(context_length=length, **options))
        if options
        else clip_tokenizer(length)
    )


@cache
def clip_tokenizer(context_length: int) -> Tokenize:
    """Return CLIP's own tokenizer, which takes a while to make."""
    return cast(Tokenize, open_clip.SimpleTokenizer(context_length=context_length))


def inside(name: str, folder: Path | None) -> str:
    """Return the path of what a configuration names if it lies in `folder`, else the name."""
    return str(folder / name) if folder is not None and (folder / name).is_dir() else name


def tokenizer_identity(tokenize: Any, tokens: Tensor) -> dict[str, Any]:
    """Describe a tokenizer: its kind, context length and a hash of its vocabulary and rules."""
    inner = getattr(tokenize, "tokenizer", tokenize)
    backend = getattr(inner, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else "\n".join(getattr(inner, "encoder", ()))
    rules = hashlib.sha256(f"{words} {tokens.tolist()}".encode()).hexdigest()[:16]
    length = getattr(tokenize, "context_length", tokens.shape[1])
    return {"kind": type(inner).__name__, "context_length": length, "sha256": rules}
