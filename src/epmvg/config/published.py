"""The published weights that a student of the paper starts from, and the folder that they are converted into."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PUBLISHED = "published"
"""Value of `model.init_from` that stands for the student's own start on its data set."""

FOLDER = Path("weights")
"""Where converted weights are looked for, in the folder in which a command is started."""

_WITHHELD = {
    **dict.fromkeys(("refcoco", "refcoco+", "transvg-unc", "transvg-unc+"), "unc"),
    **dict.fromkeys(("refcocog-google", "refcocog-umd", "transvg-gref", "transvg-gref_umd"), "gref"),
}
"""Data sets whose val and test images the published detectors were trained without; the others start from plain COCO's.

A detector that saw these images would make the results incomparable.
"""

_SWIN_FILES = {"unc": "unc_latest.pth", "gref": "gref_latest.pth", "coco": "mask_rcnn_swin_small_patch4_window7.pth"}
_VARIES = "the file that QRNet's authors share for RefCOCOg, whose name varies"
_DETR_NAMES = {"unc": "unc", "gref": "gref", "coco": "referit"}


@dataclass(frozen=True, slots=True)
class Start:
    """Published weights of a student.

    Attributes:
        file: As its authors name it.
        kind: The value of `epmvg convert --as`.
        model: The student.
    """

    file: str
    kind: str
    model: str

    @property
    def folder(self) -> str:
        """The converted folder."""
        return str(FOLDER / f"{self.model}-{Path(self.file).stem}")

    @property
    def command(self) -> str:
        """The command that makes the folder of the file."""
        return (
            f"epmvg convert {self.file} --as {self.kind} --model {self.model} --bert bert-base-uncased "
            f"--out {self.folder}"
        )


def published_start(model: str, data: str) -> Start | None:
    """Return the weights that TransVG or QRNet start from on a data set, None for students of our own.

    Args:
        model: A preset: TransVG's start from a DETR, those with a Swin-S from its Mask R-CNN.
        data: A data set; any other than RefCOCO's three starts from a detector of all of COCO.
    """
    images = _WITHHELD.get(data, "coco")
    if model in ("transvg-r50", "transvg-r101"):
        return Start(f"detr-{model.removeprefix('transvg-')}-{_DETR_NAMES[images]}.pth", "detr", model)
    if model in ("transvg-swin-s", "qrnet-swin-s"):
        return Start(_SWIN_FILES[images], "swin", model)
    return None


def missing_start(init_from: str | None, model: str, data: str) -> str:
    """Return how to make the published start of a student if it is not there, "" otherwise.

    Args:
        init_from: The setting; of other folders than the published start nothing is said.
        model, data: As in `published_start`.
    """
    start = published_start(model, data)
    if init_from is None or start is None or Path(init_from) != Path(start.folder) or Path(init_from).exists():
        return ""
    file = f"{start.file} ({_VARIES})" if start.file == _SWIN_FILES["gref"] else start.file
    return (
        f"{start.folder} is missing: {model} starts from {file} as published. Run `{start.command}`, "
        "or set model.init_from=null to start from ImageNet weights."
    )
