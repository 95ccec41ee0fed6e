"""Find phrases in an image, print their boxes and draw them.

python examples/predict.py RUN photo.jpg "the woman in the tan jacket" "her dog"
"""

from __future__ import annotations

import sys
from pathlib import Path

import epmvg


def main(run: str, image: str, *phrases: str) -> None:
    predictor = epmvg.Predictor(run)  # load once; features of recent images are cached
    predictions = predictor(image, phrases)
    for prediction in predictions:
        print(f"{prediction.score:.2f}  {prediction.phrase}  {prediction.box}")  # (x0, y0, x1, y1) in pixels
    drawn = Path(image).with_suffix(".found.png")
    predictions.draw().save(drawn)
    print(drawn)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("Give a run, an image and one or more phrases.")
    main(*sys.argv[1:])
