"""Speed and memory of presets and runtimes against a plain re-creation of the published computation.

    OMP_NUM_THREADS=2 python benchmarks/against_plain.py [--preset NAME ...] [--quick] [--out FOLDER] [--json]

All presets of the paper's size by default. `--out` writes bench.json, bench.md (tables) and bench.svg (plot).
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from epmvg.cli.console import error_console
from epmvg.core.progress import progress_bar
from reference.page import tables, write_figures
from reference.suite import PRESETS, bench


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append", help="name of a model; repeatable")
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--out", type=Path, help="folder for bench.json, bench.md and bench.svg")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    with progress_bar(error_console, "Measuring") as progress:
        found = bench(arguments.preset or PRESETS, quick=arguments.quick, progress=progress)
    if arguments.out is not None:
        write_figures(found, arguments.out)
    print(json.dumps(found) if arguments.json else tables(found))


if __name__ == "__main__":
    main()
