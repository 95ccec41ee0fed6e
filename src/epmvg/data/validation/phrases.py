"""Find phrases that are empty, too long, unknown to the tokenizer, or contain unusual characters."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence

from epmvg.core.tokenizer import PhraseTokenizer
from epmvg.data.readers.annotations import phrase_error
from epmvg.data.validation.issues import Issue
from epmvg.data.validation.samples import Located

MAX_LENGTH = 20
"""Tokens that TransVG and QRNet read, [CLS] and [SEP] included."""

# Joiners (200c, 200d) belong to scripts and emoji; the other invisible characters belong to no phrase.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
_MOJIBAKE = re.compile("\ufffd|\u00e2\u20ac|\u00c3[\u0080-\u00bf]|\u00c2[\u00a0-\u00bf]")  # UTF-8 read as Latin-1


def phrase_issues(located: Sequence[Located]) -> Iterator[Issue]:
    """Check phrases; each distinct phrase is tokenized once."""
    kinds = {phrase: _kinds_of(phrase) for phrase in {sample.phrase for _, sample in located}}
    # A token has at least one character, and BERT's vocabulary has all of ASCII: the others need no tokenizer.
    unclear = [p for p in kinds if "phrase-unusable" not in kinds[p] and not (p.isascii() and len(p) + 2 <= MAX_LENGTH)]
    tokens = PhraseTokenizer.bert(sys.maxsize)(unclear)
    for phrase, length, unknown in zip(unclear, (~tokens.padding).sum(1), tokens.unknown, strict=True):
        if length > MAX_LENGTH:
            kinds[phrase]["phrase-long"] = f"{length} tokens, more than {MAX_LENGTH}"
        if unknown:
            kinds[phrase]["phrase-unknown"] = ""
    for where, sample in located:
        for kind, note in kinds[sample.phrase].items():
            yield Issue(kind, where, note, sample.image, sample.phrase)


def _kinds_of(phrase: str) -> dict[str, str]:
    """Return the kinds of issues of a phrase that need no tokenizer, with their notes."""
    error = phrase_error(phrase)
    if error is not None:
        return {"phrase-unusable": error}
    kinds = {}
    if _CONTROL.search(phrase):
        kinds["phrase-control"] = ""
    if _MOJIBAKE.search(phrase) or not unicodedata.is_normalized("NFC", phrase):
        kinds["phrase-unicode"] = ""
    return kinds
