"""Training of a small teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from epmvg.core.types import InputError
from epmvg.distill import pretrain
from epmvg.distill.pretrain import Features, read_captions, recall, train_teacher
from epmvg.distill.teacher import ClipTeacher

COLORS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "white": (250, 250, 250)}


def test_training_learns_colors(tmp_path: Path) -> None:
    """Each color's caption is nearest to an image of that color."""
    rows = []
    for number in range(40):
        name = list(COLORS)[number % 4]
        Image.new("RGB", (48, 40), COLORS[name]).save(tmp_path / f"{number}.png")
        split = "train" if number < 32 else "val"
        rows.append({"image": f"{number}.png", "split": split, "captions": [f"a {name} wall", f"{name} all over"]})
    captions = tmp_path / "captions.jsonl"
    captions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train_teacher(captions, tmp_path / "out", image_size=32, epochs=60, batch_size=8, lr=1e-2)
    teacher = ClipTeacher(tmp_path / "out")
    images = torch.stack([torch.tensor(c).view(3, 1, 1).expand(3, 32, 32) / 255 for c in COLORS.values()])
    texts = teacher.text([f"a {name} wall" for name in COLORS])
    cosine = torch.nn.functional.cosine_similarity(texts[:, None], teacher.image(images)[None], dim=-1)
    assert (cosine.argmax(1) == torch.arange(4)).sum() >= 3
    with pytest.raises(InputError, match="exists already"):
        train_teacher(captions, tmp_path / "out")


@pytest.mark.parametrize(
    "content", ["", "{torn", '{"image": "a.png"}\n', "[]\n", '{"image": "a.png", "captions": "one text"}\n' * 2]
)
def test_unusable_captions_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "captions.jsonl").write_text(content)
    with pytest.raises(InputError, match=r"captions\.jsonl"):
        train_teacher(tmp_path / "captions.jsonl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def rows_of(folder: Path, count: int, **more: Any) -> Path:
    rows = []
    for number in range(count):
        Image.new("RGB", (20, 16), (20 * number, 0, 90)).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "split": "val" if number % 2 else "train", "captions": [f"no {number}"]})
    rows += [more] if more else []
    file = folder / "c.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return file


def test_no_epoch_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="epochs=0 trains nothing"):
        train_teacher(rows_of(tmp_path, 4), tmp_path / "out", epochs=0)
    assert not (tmp_path / "out").exists()


SMALL: dict[str, Any] = {"image_size": 32, "epochs": 1, "batch_size": 2}


def test_unreadable_image_is_skipped_and_counted(tmp_path: Path) -> None:
    """A caption may contain any character, and the caller's random number generator is unchanged."""
    file = rows_of(tmp_path, 6, image="gone.png", split="train", captions=["a\u2028b\x85c"])
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    metrics = train_teacher(file, tmp_path / "out", **SMALL)
    assert torch.equal(torch.rand(3), expected)
    assert (metrics.images, metrics.captions, metrics.skipped) == (3, 3, 1)
    assert "gone.png" in json.loads((tmp_path / "out" / "teacher.json").read_text())["skipped"][0]
    assert ClipTeacher(tmp_path / "out").width == 256
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir() if file.is_file()}
    assert len(set(modes.values())) == 1, modes  # weights are readable by whoever may read the rest


def test_failed_pretraining_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = rows_of(tmp_path, 6)
    for number in (2, 4):
        (tmp_path / f"{number}.png").write_bytes(b"torn")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"1 captioned images of split 'train'.*2\.png"):
        train_teacher(file, tmp_path / "out", **SMALL)
    monkeypatch.setattr(pretrain, "_encode_images", lambda _, pixels: torch.full((len(pixels), 1280), torch.nan))
    with pytest.raises(InputError, match=r"became NaN or Inf in epoch 1. Lower lr=0\.001"):
        train_teacher(rows_of(tmp_path, 6), tmp_path / "out", **SMALL)
    assert sorted(tmp_path.iterdir()) == before


def test_the_scale_is_that_of_the_best_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    scales: list[float] = []
    clip: Any = nn.Module()

    def best_at_first(heads: nn.ModuleList, features: Features) -> tuple[float, float]:
        scales.append(clip.logit_scale.item())
        return 1 / len(scales), 1.0

    monkeypatch.setattr(pretrain, "recall", best_at_first)
    clip.visual, clip.text = nn.Module(), nn.Module()
    clip.visual.head, clip.text.proj = nn.Linear(4, 4), nn.Linear(4, 4)
    clip.logit_scale = nn.Parameter(torch.tensor(2.0))
    table = Features(torch.rand(8, 4), torch.rand(8, 4), [[number] for number in range(8)])
    assert pretrain._fit(clip, table, table, epochs=3, batch_size=4, lr=0.1) == (1.0, 1.0, 1)
    assert clip.logit_scale.item() == scales[0] and scales[0] not in scales[1:]


def test_captions_are_read_like_other_annotations(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    file = rows_of(tmp_path / "a", 4)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b'"0.png', b'"..\\\\a\\\\0.png'))
    assert read_captions(file, tmp_path / "a", "train")[0] == (tmp_path / "a" / "0.png", ["no 0"])
    file.write_text(file.read_text("utf-8-sig").replace('"2.png', '"../2.png'))
    with pytest.raises(InputError, match=r"c\.jsonl line 3: .* is outside of"):
        train_teacher(file, tmp_path / "out")


@pytest.mark.parametrize("fill", [float("nan"), 0.0])
def test_constant_or_nan_embeddings_have_no_recall(fill: float) -> None:
    layers = [nn.Linear(4, 4), nn.Linear(4, 4)]
    heads = nn.ModuleList(layers)
    table = Features(torch.rand(50, 4), torch.rand(50, 4), [[number] for number in range(50)])
    for head in layers:
        nn.init.eye_(head.weight)
        nn.init.zeros_(head.bias)
    same = Features(table.images, table.images, table.captions)
    assert recall(heads, same)[0] > 0.9
    with torch.no_grad():
        for head in layers:
            head.weight.fill_(fill)
            head.bias.fill_(1.0)
    assert recall(heads, table) == (0.0, 0.0)
