"""Looks at every row once, as they come, and keeps no row: memory grows by some 300 bytes a row and 1 kB an image."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice

from epmvg.core.types import Box, InputError, Progress
from epmvg.data.conventions import BoxConvention, Size
from epmvg.data.validation.boxes import fault_of, overlap
from epmvg.data.validation.findings import Example, Findings, legible
from epmvg.data.validation.images import Images, Seen
from epmvg.data.validation.phrases import Words, faults_of, side_of
from epmvg.data.validation.rows import Entry

AT_ONCE = 2048
"""Rows whose phrases and new photos are handled together."""

MOST_SPLITS = 100

LONGEST = 20
"""Word pieces that TransVG and its kin read, [CLS] and [SEP] included; longer phrases lose their end."""

_BOX_KINDS = ("box-outside", "box-empty", "box-inverted", "box-thin", "side-word", "image-turned")
"""What a wrong convention of boxes brings about by itself."""

VALIDATION = ("val", "valid", "validation", "dev")
"""Names in use for the split that training validates on."""


class Examination:
    """Rows seen so far, and what was wrong with them."""

    def __init__(self, images: Images, found: Findings) -> None:
        self.images = images
        self.found = found
        self.rows: Counter[str] = Counter()  # by split
        self.splits: dict[str, int] = {}  # name -> its number
        self.convention = BoxConvention()
        self.sided = 0  # phrases that name a side as such, and have a box
        self._apart = 0  # phrases whose two boxes overlap by less than half
        self._named_copies = 0  # rows that are there before under another id
        self._first_unnamed = ""
        self._words = Words()
        self._known: set[int] = set()  # hashes of rows
        self._of_id: dict[int, int] = {}  # hash of an id -> hash of what it names
        self._asked: dict[int, int] = {}  # hash of image and phrase -> the first such row's place in the arrays
        self._boxes = array("d")
        self._where: list[str] = []

    def read(self, entries: Iterable[Entry], total: int, progress: Progress | None = None) -> None:
        """Look at all rows, `total` or fewer.

        Raises:
            InputError: the split's key holds something else.
        """
        stream = iter(entries)
        done = 0
        while some := list(islice(stream, AT_ONCE)):
            self.images.meet(some, self.found)
            words = self._words([entry.phrase or "" for entry in some], LONGEST)
            for entry, (pieces, unknown) in zip(some, words, strict=True):
                self._see(entry, pieces)
                if unknown:
                    self.found.add("phrase-unknown", _example(entry))
            done += len(some)
            if progress is not None:
                progress(done, total)

    def close(self) -> None:
        """Say what only shows once all rows are known."""
        verdict = self.convention.detect()
        if verdict is not None:
            name, why = verdict
            kept = [one for kind in _BOX_KINDS for one in self.found.examples.get(kind, [])]
            explained = self.found.drop(*_BOX_KINDS)
            self.found.add(name, Example("the whole file", why), unit="boxes", count=self.convention.boxes)
            for example in kept:
                self.found.add(name, example, unit="boxes", count=0)
            self.found.notes[name] = f"{why}. It explains {explained:,} findings about single boxes, left out here."
        if self.found.counts["side-word"]:
            wrong = self.found.counts["side-word"]
            mirrored = ": the photos may be mirrored" if wrong > 20 and 2 * wrong > self.sided else ""
            self.found.notes["side-word"] = f"{wrong:,} of {self.sided:,} phrases that name a side as such{mirrored}."
        if self._named_copies:
            self.found.notes["row-twice"] = f"{self._named_copies:,} of them have an id of their own."
        if self.found.counts["phrase-two-boxes"]:
            self.found.notes["phrase-two-boxes"] = f"In {self._apart:,} of them the boxes overlap by less than half."
        if self._first_unnamed and any(self.rows):
            self.found.add("split-unnamed", Example(self._first_unnamed), count=self.rows[""])

    def names(self) -> list[str]:
        """Return the splits by their numbers."""
        return list(self.splits)

    def _see(self, entry: Entry, pieces: int) -> None:
        split = entry.split or ""
        number = self.splits.setdefault(split, len(self.splits))
        if number == MOST_SPLITS:
            raise InputError(
                f"The rows name more than {MOST_SPLITS} splits (the last: {legible(split, 40)!r}):"
                " name a few, such as train, val and test."
            )
        self.rows[split] += 1
        if entry.split == "":
            self._first_unnamed = self._first_unnamed or entry.where
        seen = self.images.by_name[entry.image] if entry.image is not None else None
        size = entry.size
        if seen is not None:
            seen.splits |= 1 << number
            size = _frame(entry, seen)
        if entry.phrase is not None:
            self._see_phrase(entry, entry.phrase, pieces)
        if entry.box is not None:
            self._see_box(entry, entry.box, size, seen)
        if entry.image is not None and entry.phrase is not None and entry.box is not None:
            self._compare(entry, entry.image, entry.phrase, entry.box)

    def _see_phrase(self, entry: Entry, phrase: str, pieces: int) -> None:
        for name in faults_of(phrase):
            self.found.add(name, _example(entry))
        if pieces > LONGEST:
            self.found.add("phrase-long", _example(entry, f"{pieces} word pieces, more than {LONGEST}"))

    def _see_box(self, entry: Entry, box: Box, size: Size | None, seen: Seen | None) -> None:
        if entry.turned:
            self.found.add("box-rotated", _example(entry, entry.turned), unit="boxes")
        finite = all(map(math.isfinite, box))
        if finite:
            self.convention.add(box, size)
        turned = seen.turned if seen is not None else None
        if turned is not None and size is not None and finite:
            turned.add(box, size)
        fault = fault_of(box, size)
        if fault is None:
            if size is not None and entry.phrase is not None:
                self._see_side(entry, entry.phrase, box, size)
            return
        name, note = fault
        if name == "box-outside" and turned is not None:
            turned.outside.append(_example(entry, note))
        else:
            self.found.add(name, _example(entry, note))

    def _see_side(self, entry: Entry, phrase: str, box: Box, size: Size) -> None:
        """Note a box wholly on the other half of the image, its centre in the outermost quarter.

        Nearer to the middle, "the pear on the right" may be the right one of two pears.
        """
        side = side_of(phrase)
        if side is None:
            return
        self.sided += 1
        near, far = box[0] / size[0], box[2] / size[0]
        if side == "right":
            near, far = 1 - far, 1 - near
        if near >= 0.5 and (near + far) / 2 >= 0.75:
            where = "right" if side == "left" else "left"
            self.found.add("side-word", _example(entry, f"says {side}, the box is on the {where}"))

    def _compare(self, entry: Entry, image: str, phrase: str, box: Box) -> None:
        """Note rows that were there before, and phrases that had another box."""
        own_id = False
        if entry.id:
            own_id = hash(entry.id) not in self._of_id
            named = (image, box) if entry.id.startswith("ann_id ") else (image, phrase, box)
            if self._of_id.setdefault(hash(entry.id), hash(named)) != hash(named):
                self.found.add("id-twice", _example(entry, f"id {legible(entry.id, 60)}"))
        row = hash((image, phrase, box, entry.split))
        if row in self._known:
            self.found.add("row-twice", _example(entry))
            self._named_copies += own_id
            if not own_id:
                self.found.copies.add(entry.where)
            return
        self._known.add(row)
        asked = hash((image, " ".join(phrase.split()).casefold()))
        first = self._asked.setdefault(asked, len(self._where))
        if first == len(self._where):
            self._boxes.extend(box)
            self._where.append(entry.where)
        elif first >= 0 and (before := self._box(first)) != box:
            self._asked[asked] = -1  # one finding for a phrase
            shared = overlap(box, before)
            self._apart += shared < 0.5
            note = f"another box at {self._where[first]}, IoU {shared:.2f}"
            self.found.add("phrase-two-boxes", _example(entry, note, before), unit="phrases")

    def _box(self, place: int) -> Box:
        x0, y0, x1, y1 = self._boxes[4 * place : 4 * place + 4]
        return x0, y0, x1, y1


def _frame(entry: Entry, seen: Seen) -> Size | None:
    """Return the size of a row's image as it is opened, else as the row states it; note where they differ."""
    size = seen.photo.size
    if size is None:
        return entry.size
    if entry.size is not None and entry.size != size and seen.stated is None:
        seen.stated = entry.size
    return size


def _example(entry: Entry, note: str = "", *before: Box) -> Example:
    boxes = (entry.box,) if entry.box is not None and all(map(math.isfinite, entry.box)) else ()
    return Example(entry.where, note, legible(entry.image or ""), legible(entry.phrase or "", 400), (*boxes, *before))


def judge_missing_splits(rows: Counter[str], splits: Sequence[str], found: Findings) -> None:
    """Note splits that should be there, and a file without rows."""
    for split in splits:
        if not rows[split]:
            found.add("split-empty", Example("", f"{split} has no rows"), unit="splits")
    if not splits and not rows:
        found.add("split-empty", Example("", "there are no rows at all"), unit="splits")


def judge_trainable(rows: Counter[str], found: Findings) -> None:
    """Note the splits that a file lacks to be trained on; one with test splits alone is for evaluation."""
    named = sorted(name for name in rows if name)
    if not rows or {"train", "val"} <= set(named):
        return
    if not named:
        found.add("split-missing", Example("", "no row names a split"), unit="splits")
        return
    learned = [name for name in named if name.lower() in ("train", "training")]
    validated = [name for name in named if name.lower() in VALIDATION]
    if not learned and not validated:
        return
    for name, alike in (("train", learned), ("val", validated)):
        if name not in named:
            hint = f", but {legible(alike[0])!r} has: name it with data.{name}={legible(alike[0])}" if alike else ""
            found.add("split-missing", Example("", f"{name} has no rows{hint}"), unit="splits")
