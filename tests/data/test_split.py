"""`epmvg data split`: every image in one split, together with images that look the same; reproducible by seed."""

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
from epmvg.data.split import split_data
from epmvg.data.validation import check


def make(folder: Path, images: int = 20) -> Path:
    """Samples without splits, three per image; images 0 and 1 look the same."""
    annotations = []
    for number in range(images):
        noise = np.random.default_rng(max(number, 1)).integers(0, 256, (7, 9, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((60 + number, 45), Image.Resampling.BICUBIC)
        image.save(folder / f"{number}.jpg")
        annotations += [{"image": f"{number}.jpg", "phrase": f"cup {n}", "bbox": [1 + n, 2, 30, 20]} for n in range(3)]
    file = folder / "annotations.jsonl"
    file.write_text("".join(json.dumps(annotation) + "\n" for annotation in annotations))
    return file


def test_images_are_in_one_split_together_with_similar_ones(tmp_path: Path) -> None:
    file = make(tmp_path)
    assert "split-missing" in check(str(file)).issues
    run = CliRunner().invoke(app, ["data", "split", str(file), "0.8/0.1/0.1", "--out", str(tmp_path / "new.jsonl")])
    assert run.exit_code == 0, run.output
    samples = open_samples(str(tmp_path / "new.jsonl"), split=None)
    before = open_samples(str(file), split=None)
    assert [(r.image, r.phrase, r.box) for r in samples] == [(r.image, r.phrase, r.box) for r in before]
    of_image = {(sample.image.name, sample.split) for sample in samples}
    assert len(of_image) == 20 and Counter(split for _, split in of_image) == {"train": 16, "val": 2, "test": 2}
    assert dict(of_image)["0.jpg"] == dict(of_image)["1.jpg"]
    assert check(str(tmp_path / "new.jsonl")).clean


def test_splits_are_reproducible_by_seed(tmp_path: Path) -> None:
    file = make(tmp_path)

    def splits(seed: int) -> list[str]:
        split_data(str(file), "0.5/0.5", tmp_path / "new.json", seed=seed)
        return [sample.split for sample in open_samples(str(tmp_path / "new.json"), split=None)]

    assert splits(1) == splits(1) != splits(2) and set(splits(1)) == {"train", "val"}


def test_every_split_gets_an_image_and_old_splits_are_replaced(tmp_path: Path) -> None:
    file = make(tmp_path, 4)
    file.write_text(file.read_text().replace('"bbox"', '"split": "all", "bbox"'))
    done = split_data(str(file), "0.8/0.1/0.1", tmp_path / "new.jsonl")
    assert {name: part["images"] > 0 for name, part in done["splits"].items()} == dict.fromkeys(done["splits"], True)
    with pytest.raises(InputError, match="too few for 3 splits"):
        split_data(str(make(tmp_path, 2)), "0.8/0.1/0.1", tmp_path / "new.jsonl")


def test_missing_images_are_assigned_one_by_one(tmp_path: Path) -> None:
    file = make(tmp_path, 4)
    for image in tmp_path.glob("*.jpg"):
        image.unlink()
    done = split_data(str(file), "0.5/0.5", tmp_path / "new.jsonl")
    assert [part["images"] for part in done["splits"].values()] == [2, 2]


@pytest.mark.parametrize(
    "fractions", ["0.8", "0.8/0.3", "a/b", "1.1/-0.1", "nan/0.5", "0.5/nan", "inf/-inf", "0.25/0.25/0.25/0.25", ""]
)
def test_invalid_fractions_are_rejected(tmp_path: Path, fractions: str) -> None:
    with pytest.raises(InputError, match="are not valid"):
        split_data(str(make(tmp_path, 3)), fractions, tmp_path / "new.jsonl")
    file = make(tmp_path, 3)
    with pytest.raises(InputError, match="would overwrite"):
        split_data(str(file), "0.5/0.5", file)
