"""Tokenization of phrases to padded word pieces, without torch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class Tokens:
    """P tokenized phrases."""

    ids: NDArray[np.int64]  # [P, L]
    padding: NDArray[np.bool_]  # [P, L], True marks padding
    truncated: NDArray[np.bool_]  # [P], longer than the maximum length
    unknown: NDArray[np.bool_]  # [P], no word is in the vocabulary


@functools.cache
def bert_vocabulary() -> dict[str, int]:
    """Return the vocabulary of bert-base-uncased, which ships in this package."""
    words = (resources.files("epmvg.core") / "vocabulary.txt").read_text(encoding="utf-8").splitlines()
    return {word: number for number, word in enumerate(words)}


class PhraseTokenizer:
    """Tokenizes phrases, truncated to `max_length` as transformers does.

    Case and white space are up to the tokenizer, and the text of a special token ("[SEP]") is text.

    Args:
        tokenizer: of the `tokenizers` library; its padding and truncation are disabled.
        max_length: maximum number of word pieces of a phrase, [CLS] and [SEP] included.
        pad_id: id of padding.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int, pad_id: int) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True
        self.max_length, self.pad_id = max_length, pad_id
        self._tokenizer = tokenizer
        self._unknown_id = tokenizer.token_to_id(getattr(tokenizer.model, "unk_token", None) or "")

    @classmethod
    def bert(cls, max_length: int) -> PhraseTokenizer:
        """Tokenize as bert-base-uncased does."""
        from tokenizers import BertWordPieceTokenizer

        vocabulary = bert_vocabulary()
        return cls(BertWordPieceTokenizer(vocabulary)._tokenizer, max_length, vocabulary["[PAD]"])

    @classmethod
    def of(cls, tokenizer: Any, max_length: int) -> PhraseTokenizer:
        """Use a tokenizer of transformers."""
        return cls(tokenizer.backend_tokenizer, max_length, tokenizer.pad_token_id or 0)

    def __call__(self, phrases: Sequence[str]) -> Tokens:
        """Tokenize P phrases, padded to the longest, or to the next multiple of four where `max_length` is one."""
        encoded = self._tokenizer.encode_batch(list(phrases))
        rows = [self._truncate(one.ids) for one in encoded]
        longest = max(map(len, rows), default=0)
        width = -(-longest // 4) * 4 if self.max_length % 4 == 0 else longest  # kernels are cached by shape
        ids = np.array([row + [self.pad_id] * (width - len(row)) for row in rows], np.int64).reshape(len(rows), width)
        return Tokens(
            ids=ids,
            padding=np.arange(width) >= np.array([[len(row)] for row in rows], np.int64).reshape(-1, 1),
            truncated=np.array([len(one.ids) > self.max_length for one in encoded], np.bool_),
            unknown=np.array([self._is_unknown(one) for one in encoded], np.bool_),
        )

    def _truncate(self, ids: list[int]) -> list[int]:
        return ids if len(ids) <= self.max_length else [*ids[: self.max_length - 1], ids[-1]]

    def _is_unknown(self, encoded: Any) -> bool:
        pieces = zip(encoded.ids, encoded.special_tokens_mask, strict=True)
        return all(special or piece == self._unknown_id for piece, special in pieces)
