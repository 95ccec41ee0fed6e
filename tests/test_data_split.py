"""`data split`: every image in one split, images that look the same together, the same seed the same splits."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from epmvg.cli import app
from epmvg.core.types import InputError
from epmvg.data.registry import open_samples
from epmvg.data.validation import check
from epmvg.data.validation.splitting import split_data


def make(folder: Path, images: int = 20) -> Path:
    """Rows without splits, three an image; image 1 stands there twice, saved anew."""
    rows = []
    for number in range(images):
        noise = np.random.default_rng(max(number, 1)).integers(0, 256, (7, 9, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize((60 + number, 45), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number}.jpg")
        rows += [{"image": f"{number}.jpg", "phrase": f"cup {n}", "bbox": [1 + n, 2, 30, 20]} for n in range(3)]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_images_are_dealt_out_whole_and_alike_ones_together(tmp_path: Path) -> None:
    file = make(tmp_path)
    assert "split-missing" in {one.name for one in check(str(file)).findings}
    run = CliRunner().invoke(app, ["data", "split", str(file), "0.8/0.1/0.1", "--out", str(tmp_path / "new.jsonl")])
    assert run.exit_code == 0, run.output
    records = open_samples(str(tmp_path / "new.jsonl"), split=None)
    before = open_samples(str(file), split=None)
    assert [(r.image, r.phrase, r.box) for r in records] == [(r.image, r.phrase, r.box) for r in before]
    of_image = {(record.image.name, record.split) for record in records}
    assert len(of_image) == 20 and Counter(split for _, split in of_image) == {"train": 16, "val": 2, "test": 2}
    assert dict(of_image)["0.jpg"] == dict(of_image)["1.jpg"]
    assert check(str(tmp_path / "new.jsonl")).findings == []


def test_the_seed_decides(tmp_path: Path) -> None:
    file = make(tmp_path)

    def dealt(seed: int) -> list[str]:
        split_data(str(file), "0.5/0.5", tmp_path / "new.json", seed=seed)
        return [record.split for record in open_samples(str(tmp_path / "new.json"), split=None)]

    assert dealt(1) == dealt(1) != dealt(2) and set(dealt(1)) == {"train", "val"}


def test_every_split_gets_an_image_and_old_splits_are_replaced(tmp_path: Path) -> None:
    file = make(tmp_path, 4)
    file.write_text(file.read_text().replace('"bbox"', '"split": "all", "bbox"'))
    done = split_data(str(file), "0.8/0.1/0.1", tmp_path / "new.jsonl")
    assert {name: part["images"] > 0 for name, part in done["splits"].items()} == dict.fromkeys(done["splits"], True)
    with pytest.raises(InputError, match="cannot be dealt out to 3 splits"):
        split_data(str(make(tmp_path, 2)), "0.8/0.1/0.1", tmp_path / "new.jsonl")


def test_images_that_are_not_there_are_dealt_out_by_their_paths(tmp_path: Path) -> None:
    file = make(tmp_path, 4)
    for image in tmp_path.glob("*.jpg"):
        image.unlink()
    done = split_data(str(file), "0.5/0.5", tmp_path / "new.jsonl")
    assert [part["images"] for part in done["splits"].values()] == [2, 2]


@pytest.mark.parametrize("fractions", ["0.8", "0.8/0.3", "a/b", "1.1/-0.1", "0.25/0.25/0.25/0.25", ""])
def test_what_is_no_division_is_refused(tmp_path: Path, fractions: str) -> None:
    with pytest.raises(InputError, match="is no division"):
        split_data(str(make(tmp_path, 3)), fractions, tmp_path / "new.jsonl")
    file = make(tmp_path, 3)
    with pytest.raises(InputError, match="would overwrite"):
        split_data(str(file), "0.5/0.5", file)
