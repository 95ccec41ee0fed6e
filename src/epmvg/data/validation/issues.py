"""Kinds of issues that a data check finds, with their meaning and fix, and the report of a check."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from epmvg.core.types import Sample

LocatedSample = tuple[str, Sample]
"""Where a sample is ("line 12"), and the sample."""


class Kind(NamedTuple):
    """One kind of issue. An error cannot be used as it is; a warning can, but is probably a mistake."""

    title: str
    fix: str
    severity: Literal["error", "warning"] = "error"


KINDS = {
    "sample-malformed": Kind("samples that cannot be read", "Fix or delete them."),
    "sample-duplicate": Kind("samples stated more than once", "Delete the copies: each counts as a sample.", "warning"),
    "id-duplicate": Kind("ids of several different samples", "Give each sample an id of its own, or none.", "warning"),
    "box-invalid": Kind("boxes with NaN or infinity, or without a positive width and height", "Fix or delete them."),
    "box-outside": Kind("boxes more than a pixel outside of their image", "Check their scale; clip or delete them."),
    "box-thin": Kind("boxes at most a pixel wide or high", "Annotate the box again or delete the sample.", "warning"),
    "box-convention": Kind(
        "bbox of all samples seems to be written in another convention than the [x, y, width, height] it is read as",
        "Write x, y, width, height in pixels of the upright image.",
    ),
    "phrase-unusable": Kind("phrases that are empty, not encodable or too long", "Fix or delete the sample."),
    "phrase-long": Kind("phrases longer than a model reads", "Shorten them, or raise model.max_length.", "warning"),
    "phrase-unknown": Kind("phrases without any word in BERT's vocabulary", "Use English, or another BERT.", "warning"),
    "phrase-characters": Kind(
        "phrases with control characters, invisible or wrongly decoded ones, or not in Unicode's form NFC",
        "Delete the characters, or normalize the phrase.",
        "warning",
    ),
    "phrase-two-boxes": Kind("phrases with different boxes in one image", "Make them unambiguous.", "warning"),
    "image-missing": Kind("images that do not exist", "Copy the images there, or give their folder with --root."),
    "image-unreadable": Kind("images that cannot be read", "Copy or convert the image again."),
    "image-size": Kind("images of another size than their samples state", "State the size of the file."),
    "image-turned": Kind(
        "images that EXIF turns, with boxes on the unturned pixels", "Turn the boxes to the upright image."
    ),
    "split-same-image": Kind("images in two splits", "Keep the image in one split.", "warning"),
    "split-similar-image": Kind("images in two splits that look the same", "Keep one of them.", "warning"),
    "list-same-image": Kind("evaluation images in the list", "Exclude them from evaluation.", "warning"),
    "split-unnamed": Kind("samples without a split, while others have one", "Name their split.", "warning"),
    "split-missing": Kind("splits without samples", "Run `epmvg data split`, or set data.train_split, data.val_split."),
}


@dataclass(frozen=True, slots=True)
class Issue:
    """One issue of one sample, image or split."""

    kind: str
    where: str = ""  # "line 12" or "sample 12 (id)"; empty for the whole data set
    note: str = ""
    image: Path | None = None
    phrase: str = ""

    def as_dict(self) -> dict[str, str]:
        image = printable(str(self.image), 300) if self.image else ""
        return {"where": self.where, "note": printable(self.note), "image": image, "phrase": printable(self.phrase)}


@dataclass(slots=True)
class CheckReport:
    """What was checked and which issues were found."""

    data: str
    samples: int
    images: int
    splits: dict[str, dict[str, int]]  # name -> images, phrases
    issues: dict[str, list[Issue]]  # by kind, errors first
    seconds: float
    written: int | None = None  # samples in the file without errors

    @property
    def clean(self) -> bool:
        """Whether there is no issue."""
        return not self.issues

    @property
    def usable(self) -> bool:
        """Whether there is no error."""
        return all(KINDS[kind].severity == "warning" for kind in self.issues)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, with six examples of each kind and where all of its issues are."""
        issues = [
            {"kind": kind, **KINDS[kind]._asdict(), "count": len(found)}
            | {"examples": [issue.as_dict() for issue in found[:6]], "samples": [issue.where for issue in found]}
            for kind, found in self.issues.items()
        ]
        head = {"data": self.data, "clean": self.clean, "usable": self.usable, "samples": self.samples}
        head |= {"images": self.images, "splits": self.splits, "issues": issues}
        return head | {"written": self.written, "seconds": round(self.seconds, 1)}

    def table(self) -> list[dict[str, str]]:
        """Return one row per kind of issue, for a terminal."""
        rows = []
        for kind, found in self.issues.items():
            first = found[0].as_dict()
            text = f"{KINDS[kind].severity}: {KINDS[kind].title}. {KINDS[kind].fix}"
            example = ": ".join(part for part in (first["where"] or first["image"], first["note"]) if part)
            rows.append({"issue": kind, "count": f"{len(found):,}", "meaning and fix": text, "first": example})
        return rows


def by_kind(issues: list[Issue]) -> dict[str, list[Issue]]:
    """Group issues by kind, errors first, then the most frequent ones."""
    groups: dict[str, list[Issue]] = {}
    for issue in issues:
        groups.setdefault(issue.kind, []).append(issue)
    return dict(sorted(groups.items(), key=lambda item: (KINDS[item[0]].severity, -len(item[1]), item[0])))


def printable(text: str, limit: int = 200) -> str:
    """Escape characters that cannot be printed, and cut a text at a number of characters."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode("ascii") for char in cut
    )
