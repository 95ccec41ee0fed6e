"""Make the code wrong in one place at a time and see whether the tests of that place fail.

    python benchmarks/mutants.py [--only NUMBER] [--json]

Each mutant is a copy of the sources with one operator, bound or sign changed; a forked process runs the tests named
beside it on that copy. A mutant that survives shows a hole in the tests.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change to a file under src/epmvg, and the tests (files under tests/, words of `-k`) that should see it."""

    file: str
    before: str
    after: str
    tests: str
    words: str = ""


MUTANTS = [
    Mutant("core/boxes.py", "/ union.clamp(", "* union.clamp(", "core/test_boxes.py"),
    Mutant("core/geometry.py", "y0 * self.scale_y + self.top", "y0 * self.scale_y - self.top", "core/test_boxes.py"),
    Mutant(
        "evaluation/metrics.py",
        'float(row["iou"]) >= threshold',
        'float(row["iou"]) > threshold',
        "evaluation/test_metrics.py",
    ),
    Mutant("evaluation/calibration.py", "labels=[0, 1]) <", "labels=[0, 1]) >", "evaluation/test_calibration.py"),
    Mutant(
        "data/loader.py", "* (rank + 1) // ranks", "* (rank + 1) // ranks - 1", "data/test_loader.py", "not workers"
    ),
    Mutant("data/side_words.py", '.lower() == "left"', '.lower() != "left"', "data/test_side_words.py"),
    Mutant("data/readers/files.py", 'and ".." not in path.parts', "", "test_security.py", "path"),
    Mutant(
        "core/images.py",
        "not 0 < width * height <= max_pixels",
        "not 0 < width + height <= max_pixels",
        "test_security.py",
        "header",
    ),
    Mutant(
        "distill/losses.py",
        'losses.add("image", self.image_weight, image_loss)',
        'losses.add("image", self.text_weight, image_loss)',
        "distill/test_losses.py",
    ),
    Mutant("training/optimizer.py", "0.1 ** math.floor", "0.1 * math.floor", "training/test_loop.py", "schedules"),
    Mutant(
        "models/grounder.py",
        "similarity = similarity.float().masked_fill(visual.mask, -math.inf)",
        "similarity = similarity.float()",
        "models/test_grounder.py",
    ),
    Mutant("data/negatives.py", "words.isdisjoint(", "not words.isdisjoint(", "data/test_negatives.py"),
    Mutant("core/files.py", "temporary.unlink(missing_ok=True)", "pass", "training/test_errors.py", "does_not_fit"),
]


def survives(mutant: Mutant, folder: Path) -> bool:
    """Run the tests on a changed copy of the sources, in a process forked from this one."""
    copy = folder / "src"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(CHECKOUT / "src", copy)
    file = copy / "epmvg" / mutant.file
    text = file.read_text("utf-8")
    if text.count(mutant.before) != 1:
        raise SystemExit(
            f"{mutant.file} holds {mutant.before!r} {text.count(mutant.before)} times: correct the list of mutants."
        )
    file.write_text(text.replace(mutant.before, mutant.after), "utf-8")
    process = os.fork()
    if process == 0:
        os.chdir(CHECKOUT)
        quiet = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(quiet, stream)
        sys.path.insert(0, str(copy))
        os.environ["PYTHONPATH"] = str(copy)
        tests = [f"tests/{name}" for name in mutant.tests.split() if (CHECKOUT / "tests" / name).exists()]
        import pytest

        os._exit(
            pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests, *(["-k", mutant.words] if mutant.words else [])])
        )
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if status not in (0, 1):
        raise SystemExit(f"The tests {mutant.tests} -k {mutant.words!r} could not be run (pytest's status {status}).")
    return status == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, help="the number of one mutant")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    rows = []
    for name in ("torch", "torchvision", "timm", "transformers", "open_clip", "matplotlib", "hypothesis"):
        importlib.import_module(name)  # once, and not in every fork
    with tempfile.TemporaryDirectory() as folder:
        for number, mutant in enumerate(MUTANTS, 1):
            if options.only not in (None, number):
                continue
            fate = "survived" if survives(mutant, Path(folder)) else "killed"
            rows.append(
                {
                    "file": mutant.file,
                    "before": mutant.before,
                    "after": mutant.after,
                    "tests": mutant.tests,
                    "fate": fate,
                }
            )
            if not options.json:
                print(f"| {number} | `{mutant.file}` | `{mutant.before}` | `{mutant.after}` | {fate} |", flush=True)
    if options.json:
        killed = sum(row["fate"] == "killed" for row in rows)
        print(json.dumps({"mutants": len(rows), "killed": killed, "rows": rows}))


if __name__ == "__main__":
    main()
