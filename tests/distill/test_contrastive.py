"""End-to-end training of a small teacher: it learns, resumes to the same weights, and depends on its seed only."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from open_clip.loss import ClipLoss
from PIL import Image

from epmvg.cli import main
from epmvg.core.types import InputError, Sample
from epmvg.data.pairs import PhotoPairs, ScenePairs
from epmvg.data.synthetic.phrases import sentence_of
from epmvg.data.synthetic.scenes import draw_scene, held_out_names
from epmvg.distill import contrastive
from epmvg.distill.contrastive import contrastive_loss, train_end_to_end, train_on_photos
from epmvg.distill.pretrain import CaptionedImage
from epmvg.distill.teacher import ClipTeacher
from epmvg.models.pretrained import efficientnet_lite0_state, minilm_folder

COLORS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "white": (250, 250, 250)}


class ColorPairs:
    """Walls of four colors."""

    def __len__(self) -> int:
        return 16

    def pair(self, number: int, epoch: int) -> tuple[Image.Image, str]:
        name = list(COLORS)[number % 4]
        return Image.new("RGB", (40, 32), COLORS[name]), f"a {name} wall"

    def describe(self) -> dict[str, Any]:
        return {"colors": 4}


@pytest.fixture
def val(tmp_path: Path) -> list[CaptionedImage]:
    for name, color in COLORS.items():
        Image.new("RGB", (40, 32), color).save(tmp_path / f"{name}.png")
    return [(tmp_path / f"{name}.png", [f"a {name} wall"]) for name in COLORS]


SMALL: dict[str, Any] = {"image_size": 32, "epochs": 2, "batch_size": 8, "save_interval": 3}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return ClipTeacher(folder).state_dict()


def test_a_batch_is_learned_and_the_encoders_move(tmp_path: Path, val: list[CaptionedImage]) -> None:
    metrics = train_end_to_end(ColorPairs(), val, tmp_path / "out", **SMALL | {"epochs": 6, "save_interval": 99})
    assert metrics.r1 == 1.0 and (metrics.images, metrics.captions) == (16, 6 * 16)
    first = {f"clip.visual.trunk.{name}": tensor for name, tensor in efficientnet_lite0_state().items()}
    text = safetensors.torch.load_file(minilm_folder() / "model.safetensors")
    first |= {f"clip.text.transformer.{name}": tensor for name, tensor in text.items()}
    after = weights(tmp_path / "out")
    moved = {name for name, tensor in after.items() if name in first and not torch.equal(tensor, first[name])}
    assert any(name.startswith("clip.text.transformer.encoder.layer.0") for name in moved)
    assert any(name.startswith("clip.visual.trunk.blocks.2") for name in moved)
    assert not any("conv_stem" in name or "running" in name for name in moved)
    with pytest.raises(InputError, match="exists already"):
        train_end_to_end(ColorPairs(), val, tmp_path / "out", **SMALL)


class KilledError(Exception):
    pass


def test_a_killed_training_resumes_to_the_same_weights(
    tmp_path: Path, val: list[CaptionedImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    whole = train_end_to_end(ColorPairs(), val, tmp_path / "whole", **SMALL)
    assert torch.equal(torch.rand(3), expected)
    real = contrastive._take_step
    steps: list[int] = []

    def dies_at_four(*arguments: Any) -> None:
        steps.append(len(steps))
        if len(steps) == 4:
            raise KilledError
        real(*arguments)

    monkeypatch.setattr(contrastive, "_take_step", dies_at_four)
    with pytest.raises(KilledError):
        train_end_to_end(ColorPairs(), val, tmp_path / "killed", **SMALL)
    with pytest.raises(InputError, match="other settings"):
        train_end_to_end(ColorPairs(), val, tmp_path / "killed", **SMALL | {"lr": 0.1})
    resumed = train_end_to_end(ColorPairs(), val, tmp_path / "killed", **SMALL)
    assert len(steps) == 4 + 1  # from the checkpoint after step 3, within an epoch
    assert (resumed.r1, resumed.r5, resumed.epoch) == (whole.r1, whole.r5, whole.epoch)
    ours, theirs = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    about = json.loads((tmp_path / "killed" / "teacher.json").read_text())
    assert about["metrics"]["r1"] == whole.r1 and about["pairs"] == {"colors": 4}
    assert not list(tmp_path.glob(".*")) and not (tmp_path / "killed" / contrastive.CHECKPOINT).exists()


def test_pairs_with_the_same_text_are_positives() -> None:
    """Where none are equal it is CLIP's loss; equal ones need not be told apart."""
    image, scale = torch.eye(3), torch.tensor(50.0)
    clip = ClipLoss()(image, torch.eye(3), scale)
    assert float(contrastive_loss(image, 2 * torch.eye(3), scale, ["a", "c", "b"])) == pytest.approx(float(clip))
    together, apart = torch.eye(3)[[0, 0, 2]], torch.eye(3)
    losses = [float(contrastive_loss(each, each, scale, ["a", "a", "b"])) for each in (together, apart)]
    assert losses[0] == pytest.approx(2 / 3 * math.log(2), abs=1e-4) and losses[1] > 10


def test_drawn_pairs_cover_what_boxes_never_do() -> None:
    pairs, held_out = ScenePairs(90, side=64), held_out_names()
    texts = [pairs.pair(number, 0)[1] for number in range(90)]
    assert texts == [pairs.pair(number, 0)[1] for number in range(90)]
    assert texts != [pairs.pair(number, 1)[1] for number in range(90)]
    words = " ".join(texts)
    assert any(name in words for name in held_out)
    assert [word for word in ("red ", "bigger", "left", "above", "picture") if word not in words] == []
    scene = draw_scene("captions", 0, side=64)
    image = pairs.pair(0, 0)[0]
    assert image.tobytes() == scene.image.tobytes()
    assert sentence_of(scene.objects, scene.image.size, np.random.default_rng(0))


def test_photo_pairs_are_images_with_sentences_and_regions_with_phrases(tmp_path: Path) -> None:
    image = Image.new("RGB", (60, 40), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 20, 20))
    path = tmp_path / "a.png"
    image.save(path)
    elsewhere = Sample(tmp_path / "b.png", "gone", (0, 0, 5, 5))
    pairs = PhotoPairs.of(
        [(path, ["red on the left of blue"])], [Sample(path, "the square", (2, 2, 18, 18)), elsewhere]
    )
    assert len(pairs) == 4 and pairs.describe()["regions"] == 1
    others = (
        PhotoPairs([(path, ["another"])], pairs.regions),
        PhotoPairs(pairs.captioned, {path: [((2, 2, 9, 9), "x")]}),
    )
    assert len({each.describe()["sha256"] for each in (pairs, *others)}) == 3
    seen = {}
    for epoch in range(8):
        for number in range(4):
            crop, text = pairs.pair(number, epoch)
            seen[text] = crop
            if text == "the square":
                assert crop.width <= 16 * 1.4 + 2 and crop.getpixel((crop.width // 2, crop.height // 2)) == (255, 0, 0)
    assert seen.keys() == {"the square", "red on the left of blue", "red on the right of blue"}
    assert seen["red on the left of blue"].width >= 45


def test_photos_and_their_boxes_train_a_teacher(tmp_path: Path) -> None:
    """Pairs are of the training split, and are made in another process."""
    rows, boxes = [], []
    for number in range(4):
        Image.new("RGB", (30, 30), (60 * number, 90, 0)).save(tmp_path / f"{number}.png")
        split = "train" if number < 2 else "val"
        rows.append({"image": f"{number}.png", "split": split, "captions": [f"wall {number}"]})
        boxes.append({"image": f"{number}.png", "split": "train", "phrase": f"part {number}", "bbox": [2, 2, 20, 20]})
    for name, values in (("captions", rows), ("boxes", boxes)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in values))
    captions, regions = tmp_path / "captions.jsonl", str(tmp_path / "boxes.jsonl")
    with pytest.raises(SystemExit) as ended:
        main(["teacher", "train", str(captions), "--regions", regions, "--out", str(tmp_path / "out"), "--epochs", "1"])
    assert ended.value.code == 0
    about = json.loads((tmp_path / "out" / "teacher.json").read_text())
    digest = about["pairs"].pop("sha256")
    assert about["pairs"] == {"photos": 2, "regions": 2, "per_photo": 3, "seed": 0} and about["batch_size"] == 8
    partial = tmp_path / ".next.partial"
    partial.mkdir()
    settings = about | {"pairs": about["pairs"] | {"sha256": digest}}
    del settings["metrics"]
    torch.save({"settings": json.dumps(settings)}, partial / "checkpoint.pt")
    captions.write_text(captions.read_text().replace("wall 1", "wall 9"))
    with pytest.raises(InputError, match="holds a training with other settings"):
        train_on_photos(captions, regions, tmp_path / "next", epochs=1)
    assert ClipTeacher(tmp_path / "out").preprocess.size == (224, 224)
    (tmp_path / "other.jsonl").write_text(json.dumps(boxes[3]) + "\n")
    with pytest.raises(InputError, match=r"no box in a photo.*Give annotations"):
        train_on_photos(captions, str(tmp_path / "other.jsonl"), tmp_path / "no")
