"""Read the samples of a data check; find malformed ones, duplicates, and phrases that are unusable or ambiguous."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from epmvg.core.tokenizer import PhraseTokenizer
from epmvg.core.types import Box, InputError
from epmvg.data.readers.annotations import phrase_error
from epmvg.data.registry import located_samples
from epmvg.data.validation.issues import Issue, LocatedSample

MAX_LENGTH = 20
"""Tokens that TransVG and QRNet read, [CLS] and [SEP] included."""

# Control characters, invisible ones that belong to no script or emoji, and UTF-8 read as Latin-1.
_BAD_CHARACTERS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]"
    "|\ufffd|\u00e2\u20ac|\u00c3[\u0080-\u00bf]|\u00c2[\u00a0-\u00bf]"
)


def read_samples(data: str, root: Path | str | None) -> tuple[list[LocatedSample], list[Issue]]:
    """Read all samples of a data set, and an issue for each that cannot be read."""
    located: list[LocatedSample] = []
    issues: list[Issue] = []
    for place, sample in located_samples(data, root=root):
        where = place.removeprefix(f"{Path(data)} ")
        if isinstance(sample, InputError):
            issues.append(Issue("sample-malformed", where, str(sample).removeprefix(place).lstrip(": ")))
        else:
            located.append((where, sample))
    return located, issues


def sample_issues(located: Sequence[LocatedSample]) -> Iterator[Issue]:
    """Find duplicate samples and ids, and phrases with different boxes in one image."""
    seen: set[tuple[object, ...]] = set()
    by_id: dict[str, tuple[object, ...]] = {}
    by_phrase: dict[tuple[Path, str], tuple[str, Box]] = {}
    ambiguous: set[tuple[Path, str]] = set()
    for where, sample in located:
        content = (sample.image, sample.phrase, sample.box)
        annotation_id = sample.extra.get("ann_id")  # phrases may share it, boxes may not
        name, named = (sample.id, content) if sample.id else (f"ann_id {annotation_id}", (sample.image, sample.box))
        if (sample.id or annotation_id is not None) and by_id.setdefault(name, named) != named:
            yield Issue("id-duplicate", where, f"id {name}", sample.image, sample.phrase)
        if (*content, sample.split) in seen:
            yield Issue("sample-duplicate", where, "", sample.image, sample.phrase)
            continue
        seen.add((*content, sample.split))
        key = (sample.image, " ".join(sample.phrase.split()).casefold())
        first_where, first_box = by_phrase.setdefault(key, (where, sample.box))
        if first_box != sample.box and key not in ambiguous:
            ambiguous.add(key)
            yield Issue("phrase-two-boxes", where, f"another box at {first_where}", sample.image, sample.phrase)


def phrase_issues(located: Sequence[LocatedSample]) -> Iterator[Issue]:
    """Check phrases; each distinct phrase is tokenized once."""
    kinds: dict[str, dict[str, str]] = {}  # phrase -> kind -> note
    for phrase in {sample.phrase for _, sample in located}:
        error = phrase_error(phrase)
        is_odd = _BAD_CHARACTERS.search(phrase) or not unicodedata.is_normalized("NFC", phrase)
        kinds[phrase] = {"phrase-unusable": error} if error else {"phrase-characters": ""} if is_odd else {}
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
