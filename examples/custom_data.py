"""Train on pictures of one's own: draw some, write the JSONL file, look it over, train, score.

python examples/custom_data.py FOLDER

The pictures are coloured squares and the student is tiny, so that it ends within a minute. For photos use the recipe
`flickr-mini` as it is.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw

import epmvg
from epmvg.data.validation import check

COLOURS = ["red", "green", "blue", "yellow"]
SMALL = [
    *("model=tiny-resnet", "model.pretrained=false", "data.image_size=null"),
    *("train.epochs=4", "train.warmup_steps=0"),
]


def draw(folder: Path, pictures: int = 24) -> Path:
    """Draw pictures of two squares and write a row a square; every fourth picture is for validation."""
    rows = []
    for number in range(pictures):
        picture = Image.new("RGB", (96, 72), "grey")
        for place in (0, 1):
            colour = COLOURS[(number // (1 + 3 * place) + place) % 4]
            x, y = 6 + 46 * place + number % 5, 8 + number % 11
            ImageDraw.Draw(picture).rectangle((x, y, x + 29, y + 29), fill=colour)
            phrase = f"the {colour} square on the {('left', 'right')[place]}"
            split = "val" if number % 4 == 3 else "train"
            rows.append({"image": f"{number}.png", "phrase": phrase, "bbox": [x, y, 30, 30], "split": split})
        picture.save(folder / f"{number}.png")
    file = folder / "my.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    data = draw(folder)
    for issue in check(str(data)).table():
        print(issue)  # nothing, or what to fix before training
    recipe = epmvg.Recipe.load("flickr-mini", f"data.name={data}", *SMALL)
    run = epmvg.train(recipe, folder / "run")
    scores = epmvg.evaluate(run)
    print(f"Acc@0.5 {scores['acc50']:.3f}, mean IoU {scores['miou']:.3f} on {scores['n']} phrases of val")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "custom-data"))
