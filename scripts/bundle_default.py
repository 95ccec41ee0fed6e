"""Make the bundled model from a run: int8 weights, int8 graphs, calibration, settings without paths, model card.

    python scripts/bundle_default.py runs/photos --data photos.jsonl --split val --root flickr30k \
        --evaluate photos.jsonl val --evaluate flickr-mini test

The graphs are made from the int8 weights, calibrated and evaluated as they are shipped, and the card states what was
measured. `src/epmvg/pretrained/default` is replaced, except its LICENSE.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import epmvg
from epmvg.export import CalibrationData, export_run
from epmvg.hub import model_card, save_pretrained
from epmvg.models.factory import load, save

DEFAULT = Path(__file__).parents[1] / "src" / "epmvg" / "pretrained" / "default"
DOMAIN = "photographs of people, animals and everyday things"
FALSE_POSITIVE_RATE = 0.2
"""Of negative phrases; on val 63 % of the others are found, and 81 % of their boxes are right."""

RESULTS = ("evaluation-*", "predictions-*", "negatives-*")


def bundle(run: Path, data: CalibrationData, evaluated: Sequence[tuple[str, str]], target: Path) -> None:
    """Write the folder; nothing is replaced if a step fails."""
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        folder, graphs = Path(temporary) / target.name, Path(temporary) / "graphs"
        save_pretrained(run, folder, license="other")
        save(load(run), folder, int8=True)
        state_terms(folder)
        export_run(folder, graphs, calibration_data=data, report=print)
        shutil.copytree(graphs, folder, dirs_exist_ok=True)
        rate = FALSE_POSITIVE_RATE
        print(epmvg.calibrate(folder, data=data.data, split=data.split, root=data.root, false_positive_rate=rate))
        for name, split in evaluated:
            result = epmvg.evaluate(folder, data=name, split=split, root=data.root)
            print(name, split, result["acc50"], result["intervals"]["acc50"], result["confidence"], flush=True)
        (folder / "README.md").write_text(model_card(folder, name="default", license="other"), encoding="utf-8")
        state_terms(folder)
        for file in (path for pattern in RESULTS for path in folder.glob(pattern)):
            file.unlink()
        shutil.copy(target / "LICENSE", folder)
        target.rename(Path(temporary) / "replaced")
        folder.rename(target)


def state_terms(folder: Path) -> None:
    """State in the card what the model knows, and where its license is."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    terms = "license: other\nlicense_name: research-and-non-commercial\nlicense_link: LICENSE\n"
    domain = "" if "\ndomain:" in card else f"domain: {DOMAIN}\n"
    (folder / "README.md").write_text(card.replace("license: other\n", terms + domain, 1), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True, help="data set or file to calibrate scores and int8 on")
    parser.add_argument("--split", required=True, help="of that data; no test split")
    parser.add_argument("--root", help="folder of the images")
    parser.add_argument("--evaluate", nargs=2, action="append", default=[], metavar=("DATA", "SPLIT"))
    parser.add_argument("--out", type=Path, default=DEFAULT, help="a folder with a LICENSE, which is replaced")
    given = parser.parse_args()
    data = CalibrationData(given.data, given.split, given.root)
    bundle(given.run, data, [(name, split) for name, split in given.evaluate], given.out)
    for file in sorted(given.out.rglob("*")):
        if file.is_file():
            print(f"{file.stat().st_size / 1e6:8.2f} MB  {file.relative_to(given.out)}")


if __name__ == "__main__":
    main()
