"""A data set of colored squares, drawn for tests."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image, ImageDraw

COLORS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (230, 210, 50)}


def draw_squares(folder: Path) -> Path:
    """Draw 12 images, each with four colored squares, one per corner, half train and half val; return their file."""
    rows = []
    for number in range(12):
        image = Image.new("RGB", (80, 60), (120, 120, 120))
        draw = ImageDraw.Draw(image)
        names = list(COLORS)
        names = names[number % 4 :] + names[: number % 4]
        for place, name in enumerate(names):
            x, y = 4 + 40 * (place % 2) + number % 3, 4 + 30 * (place // 2)
            draw.rectangle((x, y, x + 23, y + 19), fill=COLORS[name])
            bbox = [x, y, 24, 20]
            split = "train" if number % 2 == 0 else "val"
            row = {"image": f"{number}.png", "phrase": f"the {name} square", "bbox": bbox, "split": split}
            rows.append(row | {"id": f"{number}-{name}", "width": 80, "height": 60, "kind": "color"})
        image.save(folder / f"{number}.png")
    file = folder / "annotations.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
