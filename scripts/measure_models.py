"""Write src/epmvg/models/sizes.json: parameters and GFLOPs of every preset, for `epmvg list models`."""

from __future__ import annotations

import json
from pathlib import Path

from epmvg.models.factory import create_model, measure
from epmvg.models.presets import PRESETS

FILE = Path(__file__).parents[1] / "src/epmvg/models/sizes.json"


def main() -> None:
    sizes = {}
    for name in sorted(PRESETS):
        sizes[name] = measure(create_model(name))
        print(name, sizes[name])
    FILE.write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
