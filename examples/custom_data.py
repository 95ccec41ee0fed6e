"""Train on a custom data set: draw images, write the JSONL file, check it, train, evaluate.

python examples/custom_data.py FOLDER

The images are colored squares and the student is tiny, so that this takes less than a minute. For photos use the
recipe `flickr-mini` without `SMALL`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw

import epmvg
from epmvg.data.validation import check

COLORS = ["red", "green", "blue", "yellow"]
SMALL = [
    *("model=tiny-resnet", "model.pretrained=false", "data.image_size=null"),
    *("train.epochs=4", "train.warmup_steps=0"),
]


def draw(folder: Path, num_images: int = 24) -> Path:
    """Draw images of two squares and write one sample per square; every fourth image is for validation."""
    samples = []
    for number in range(num_images):
        image = Image.new("RGB", (96, 72), "gray")
        for side in (0, 1):
            color = COLORS[(number // (1 + 3 * side) + side) % 4]
            x, y = 6 + 46 * side + number % 5, 8 + number % 11
            ImageDraw.Draw(image).rectangle((x, y, x + 29, y + 29), fill=color)
            phrase = f"the {color} square on the {('left', 'right')[side]}"
            split = "val" if number % 4 == 3 else "train"
            samples.append({"image": f"{number}.png", "phrase": phrase, "bbox": [x, y, 30, 30], "split": split})
        image.save(folder / f"{number}.png")
    file = folder / "my.jsonl"
    file.write_text("".join(json.dumps(sample) + "\n" for sample in samples), encoding="utf-8")
    return file


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    data = draw(folder)
    for issue in check(str(data)).table():
        print(issue)  # none here; fix errors before training
    recipe = epmvg.Recipe.load("flickr-mini", f"data.name={data}", *SMALL)
    run = epmvg.train(recipe, folder / "run")
    scores = epmvg.evaluate(run)
    print(f"Acc@0.5 {scores['acc50']:.1%}, mean IoU {scores['miou']:.1%} on {scores['n']} phrases of val")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "custom-data"))
