"""One HTML page about runs: metrics with intervals, training curves, slices, correct and wrong boxes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from epmvg.core.files import write_text
from epmvg.core.types import InputError
from epmvg.report.page import render
from epmvg.report.runs import read_runs


def write_report(
    runs: Sequence[Path | str],
    out: Path | str,
    *,
    gallery: int = 12,
    phrases: Sequence[str] = (),
) -> Path:
    """Write one self-contained HTML page about run folders and return its path.

    The same folders give the same bytes. The page loads nothing from elsewhere.

    Args:
        runs: folders that training and evaluation wrote, or `default` and models of the hub, whose results are in
            runs/NAME; the first is what the others are compared with.
        out: the HTML file; an existing one is replaced.
        gallery: images in each group of the gallery, divided among the data splits; 0 leaves the gallery out.
        phrases: to show with the boxes of all runs; by default those on which the last run improves most on the first.

    Raises:
        InputError: a folder is missing, empty, unreadable or holds no predictions, `out` is a folder, or no run
            predicted one of `phrases`.
    """
    if gallery < 0:
        raise InputError(f"gallery={gallery} is not a number of images. Give 0 or more.")
    out = Path(out)
    if out.is_dir():
        raise InputError(f"{out} is a folder. Name the HTML file, for example {out / 'report.html'}.")
    html = render(read_runs(runs), gallery, phrases)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, html)
    return out
