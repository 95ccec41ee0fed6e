"""Find phrases in a photo, say where they are and draw them.

python examples/predict.py RUN photo.jpg "the woman in the tan jacket" "her dog"
"""

from __future__ import annotations

import sys
from pathlib import Path

import epmvg


def main(run: str, photo: str, *phrases: str) -> None:
    ground = epmvg.Predictor(run)  # load once, ask often: the latest photos are remembered
    found = ground(photo, phrases)
    for one in found:
        print(f"{one.score:.2f}  {one.phrase}  {one.box}")  # (x0, y0, x1, y1) in the photo's pixels
    drawn = Path(photo).with_suffix(".found.png")
    found.draw().save(drawn)
    print(drawn)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("Give a run, a photo and one or more phrases.")
    main(*sys.argv[1:])
