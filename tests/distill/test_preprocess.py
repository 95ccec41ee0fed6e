"""Image preprocessing of a teacher equals the published one; `input_box` gives its position in the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from transformers import CLIPImageProcessor, SiglipImageProcessor

from epmvg.core.types import InputError
from epmvg.distill.preprocess import Preprocess

MODES = ["shortest", "longest", "squash"]


def drawn(width: int = 150, height: int = 90) -> Image.Image:
    """A smooth image: red encodes the column, green the row."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 128)], -1).astype(np.uint8))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_images_are_those_of_open_clip(mode: str, interpolation: str) -> None:
    settings = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": interpolation, "resize_mode": mode}
    preprocess = Preprocess.of(settings | {"fill_color": 7}, 32)
    published = image_transform_v2(PreprocessCfg(size=32, fill_color=7, **settings), is_train=False)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (preprocess.mean, preprocess.std))
    torch.testing.assert_close((preprocess.image(drawn()) - mean) / std, published(drawn()))


@pytest.mark.parametrize(
    ("processor", "mode"),
    [
        (CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}), "shortest"),
        (SiglipImageProcessor(size={"height": 32, "width": 32}, resample=3), "squash"),
    ],
)
def test_images_are_those_of_transformers(processor: CLIPImageProcessor, mode: str) -> None:
    settings = {"mean": processor.image_mean, "std": processor.image_std, "resize_mode": mode}
    preprocess = Preprocess.of(settings, 32)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (preprocess.mean, preprocess.std))
    theirs = processor(images=drawn(), return_tensors="pt")["pixel_values"][0]
    assert ((preprocess.image(drawn()) - mean) / std - theirs).abs().max() < 0.05  # two grey levels


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(150, 90), (90, 150), (64, 64)])
def test_input_box_is_where_the_image_is(mode: str, size: tuple[int, int]) -> None:
    preprocess = Preprocess.of({"resize_mode": mode}, (32, 48))
    seen = preprocess.image(drawn(*size))
    assert seen.shape == (3, 32, 48)
    x0, y0, x1, y1 = preprocess.input_box(*size).tolist()
    x = x0 + (torch.arange(48) + 0.5) / 48 * (x1 - x0)
    y = y0 + (torch.arange(32) + 0.5) / 32 * (y1 - y0)
    inside = (x > 0.05) & (x < 0.95), (y > 0.05) & (y < 0.95)
    assert (seen[0][:, inside[0]][inside[1]] - x[inside[0]]).abs().max() < 0.03
    assert (seen[1][:, inside[0]][inside[1]] - y[inside[1]][:, None]).abs().max() < 0.03
    outside = (x < -0.02) | (x > 1.02)
    assert seen[:, :, outside].abs().sum() == 0  # fill_color 0


def test_square_inputs_are_stretched() -> None:
    preprocess = Preprocess.of({"resize_mode": "squash"}, (32, 48))
    image = torch.from_numpy(np.array(drawn(64, 64))).permute(2, 0, 1) / 255
    assert (preprocess.resize(image[None])[0] - preprocess.image(drawn(64, 64))).abs().max() < 0.02
    assert preprocess.resize(image[None, :, :32, :48]).equal(image[None, :, :32, :48])


@pytest.mark.parametrize("settings", [{"resize_mode": "stretch"}, {"interpolation": "lanczos"}, {"mean": [1, 2]}])
def test_unknown_preprocessing_is_rejected(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match=str(next(iter(settings.values())))[:5].replace("[", r"\[")):
        Preprocess.of(settings, 32)


def test_a_folder_s_image_processor_is_read(tmp_path: Path) -> None:
    from epmvg.distill.transformers_clip import _preprocess

    SiglipImageProcessor(image_mean=[0.1] * 3, resample=2).save_pretrained(tmp_path)
    assert _preprocess(tmp_path, "clip") == {
        "mean": [0.1] * 3,
        "std": [0.5] * 3,
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
