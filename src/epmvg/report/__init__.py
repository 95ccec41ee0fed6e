"""One HTML page about one run or several: scores with intervals, curves, slices, hits and misses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from epmvg.core.types import InputError
from epmvg.evaluation.statistics import PairedDifference, bootstrap, compare
from epmvg.report.page import render
from epmvg.report.runs import read_runs
from epmvg.report.template import write

__all__ = ["PairedDifference", "bootstrap", "compare", "write_report"]


def write_report(
    runs: Sequence[Path | str],
    out: Path | str,
    *,
    gallery: int = 12,
    phrases: Sequence[str] = (),
) -> Path:
    """Write one self-contained HTML page about run folders and return its path.

    The same folders give the same bytes. Nothing is fetched when the page is read.

    Args:
        runs: folders that training and evaluation wrote; the first is what the others are compared with.
        out: the HTML file; an existing one is replaced.
        gallery: pictures in each group of the gallery, shared out among the data splits; 0 leaves the gallery out.
        phrases: to show run beside run; by default those on which the last run improves most on the first.

    Raises:
        InputError: a folder is missing, empty, unreadable or holds no predictions, `out` is a folder, or no run
            answered one of `phrases`.
    """
    if gallery < 0:
        raise InputError(f"gallery={gallery} is not a number of pictures: give 0 or more.")
    out = Path(out)
    if out.is_dir():
        raise InputError(f"{out} is a folder: name the HTML file, for example {out / 'report.html'}.")
    html = render(read_runs(runs), gallery, phrases)
    write(html, out)
    return out
