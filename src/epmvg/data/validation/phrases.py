"""What can be wrong with a phrase by itself, and which side of the image it names, if it does."""

from __future__ import annotations

import re
import sys
import unicodedata
from typing import TYPE_CHECKING, Literal

from epmvg.core.tokenizer import PhraseTokenizer
from epmvg.data.readers.fields import is_encodable

if TYPE_CHECKING:
    from collections.abc import Sequence

# Joiners (200c, 200d) belong to scripts and emoji; the other invisible characters do not belong to a phrase.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
_MARKUP = re.compile(r"</?[a-z][a-z0-9]*(\s[^<>]*)?/?>|&([a-z]{2,8}|#\d{2,6}|#x[0-9a-f]{2,6});", re.IGNORECASE)
_MOJIBAKE = re.compile("\ufffd|\u00e2\u20ac|\u00c3[\u0080-\u00bf]|\u00c2[\u00a0-\u00bf]")  # UTF-8 read as Latin-1

_SIDES = re.compile(r"\b(left|right)(?=\b|most\b|hand\b)", re.IGNORECASE)
_SIDE = r"(?:left|right)(?:[ -]?most)?(?:(?:[ -]?hand)? side)?"
_FRAME = r"(?: of (?:the |this )?(?:image|picture|photo|photograph|pic|screen|frame))?"
_ABSOLUTE = re.compile(
    rf"^(?:the )?(?:far |extreme )?{_SIDE}{_FRAME}$"
    r"|^(?:the )?(?:(?:left|right)[ -]?most|(?:far|extreme) (?:left|right))\b"
    rf"|\b(?:on|at) (?:the )?(?:very |far |extreme )?{_SIDE}{_FRAME}$",
    re.IGNORECASE,
)
_RELATIVE = re.compile(
    r"\b(?:facing|looking|pointing|turn(?:ed|ing)|lean(?:ing|s)|mov(?:ing|es)|head(?:ing|s)|walk(?:ing|s)|run(?:ning|s)"
    r"|fac(?:es|ed)|looks|points|from|next|beside|behind|front|his|her|its|their|my|your|row|group|pair|two|both|of)\b",
    re.IGNORECASE,
)


def faults_of(phrase: str) -> list[str]:
    """Name the kinds of fault a phrase has, of those that show without a tokenizer."""
    if not phrase.strip():
        return ["phrase-empty"]
    faults = []
    if _CONTROL.search(phrase):
        faults.append("phrase-control")
    if _MARKUP.search(phrase):
        faults.append("phrase-markup")
    if not phrase.isascii():
        whole = is_encodable(phrase) and not _MOJIBAKE.search(phrase)
        if not whole or not unicodedata.is_normalized("NFC", phrase):
            faults.append("phrase-unicode")
    return faults


def side_of(phrase: str) -> Literal["left", "right"] | None:
    """Return the side of the image that a phrase names as such, or None.

    Only absolute phrases count: "left", "leftmost ...", "far left ..." and "... on the left (side) (of the picture)".
    A phrase with both sides, a possessive ("his left hand"), a direction ("looking left"), a group ("of the two") or
    another "of" than that of the picture names a side of something else.
    """
    sides = {match.lower() for match in _SIDES.findall(phrase)}
    if len(sides) != 1:
        return None
    text = " ".join(phrase.replace(".", " ").split())
    if not _ABSOLUTE.search(text) or _RELATIVE.search(re.sub(f"{_FRAME}$", "", text, flags=re.IGNORECASE)):
        return None
    return "left" if "left" in sides else "right"


class Words:
    """Count word pieces, [CLS] and [SEP] included, and tell phrases that hold no word of the vocabulary."""

    def __init__(self) -> None:
        self.tokenizer = PhraseTokenizer.bert(sys.maxsize)

    def __call__(self, phrases: Sequence[str], longest: int) -> list[tuple[int, bool]]:
        """Return each phrase's word pieces, 0 where they cannot exceed `longest`, and whether no word is known."""
        found = [(0, False)] * len(phrases)
        # A piece holds at least one letter: a short ASCII phrase needs no tokenizer.
        asked = [i for i, text in enumerate(phrases) if not (text.isascii() and len(text) + 2 <= longest)]
        if asked:
            tokens = self.tokenizer(
                [phrases[i].encode("utf-8", "replace").decode() for i in asked]
            )  # half letters: "?"
            lengths = (~tokens.padding).sum(1).tolist()
            for i, length, unknown in zip(asked, lengths, tokens.unknown.tolist(), strict=True):
                found[i] = length, unknown and bool(phrases[i].strip())
        return found
