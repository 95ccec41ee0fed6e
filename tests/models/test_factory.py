"""Models are saved, loaded and initialized from one another without loss, or rejected in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from grounders import MODELS, assert_close, create, random_inputs

from epmvg.config.settings import Recipe
from epmvg.core.types import InputError
from epmvg.experiments.tables import read_tables
from epmvg.inference.predictor import Predictor
from epmvg.models import presets
from epmvg.models.convert import convert, write
from epmvg.models.factory import build, create_model, init_from, load, save
from epmvg.models.grounder import Grounder
from epmvg.models.presets import PRESETS, preset


@pytest.mark.parametrize("kind", list(MODELS))
def test_a_saved_model_gives_the_same_output(kind: str, tmp_path: Path) -> None:
    model = create(kind)
    save(model, tmp_path)
    again = load(tmp_path)
    with torch.no_grad():
        assert_close(model(*random_inputs(model)), again(*random_inputs(again)))
    assert again.settings == model.settings


@pytest.mark.parametrize("damage", ["model.yaml", "model.safetensors", "tokenizer", "torn weights", "other weights"])
def test_a_damaged_folder_is_rejected(tiny: Grounder, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "run"
    save(tiny, folder)
    if damage == "torn weights":
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    elif damage == "other weights":
        save(create_model("tiny-resnet"), tmp_path / "other")
        (tmp_path / "other" / "model.safetensors").replace(folder / "model.safetensors")
    else:
        (folder / damage).rename(folder / "elsewhere")
    with pytest.raises(InputError, match="run"):
        load(folder)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_builds_and_runs(name: str) -> None:
    numbers = preset(name)
    if numbers["text_encoder"]["width"] > 700:
        numbers = preset(name, text_encoder={"layers": 1, "width": 96, "dim_feedforward": 96}, image_size=64)
    model = build(numbers).eval()
    image, image_mask, tokens, token_mask, image_index = random_inputs(model)
    with torch.no_grad():
        output = model(image, image_mask, tokens, token_mask, image_index)
    one_map = len(model.visual_encoder.strides) == 1
    assert output.grid == ((model.image_size // model.visual_encoder.strides[0],) * 2 if one_map else None)
    assert output.box.shape == (4, 4) and ((output.box > -1) & (output.box < 2)).all()


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_sizes_json_is_up_to_date(name: str) -> None:
    listed = json.loads((Path(presets.__file__).with_name("sizes.json")).read_text())[name]
    with torch.device("meta"):
        model = create_model(name)
    assert listed["parameters"] == sum(p.numel() for p in model.parameters())
    assert listed["tokens"] == model.visual_encoder.num_tokens(model.image_size)


@pytest.mark.parametrize("name", ["tiny-resnet", "tiny-swin"])
def test_load_is_independent_of_the_callers_defaults(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save(create_model(name, **({"dense_head": True, "similarity": True} if name == "tiny-resnet" else {})), tmp_path)
    image, phrases = np.full((40, 60, 3), 90, np.uint8), ["the red square", "dog"]
    expected = Predictor(tmp_path, device="cpu")(image, phrases)
    state = torch.get_rng_state()
    try:
        for dtype, device in ((torch.float64, "cpu"), (torch.float32, "meta")):
            torch.set_default_dtype(dtype)
            torch.set_default_device(device)
            predictor = Predictor(tmp_path, device="cpu")
            for one, other in zip(predictor(image, phrases), expected, strict=True):
                assert one.box == pytest.approx(other.box, abs=0.011) and one.score == pytest.approx(
                    other.score, abs=1e-5
                )
            assert predictor.maps("attention", image, "dog")[0].shape == (40, 60)
            assert torch.get_default_dtype() == dtype and torch.get_default_device().type == device
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"visual_encoder": {"mean": [0.5] * 3, "std": [0.5] * 3}}, r"model\.visual_encoder\.mean=\[0\.5"),
        ({"vls": "mean"}, r"model\.vls=mean and this model has first"),
        ({"visual_encoder": {"heads": 4}}, r"model\.visual_encoder\.heads=4"),
        ({"fusion": {"heads": 4}}, r"model\.fusion\.heads=4"),
        ({"text_encoder": {"heads": 4}}, r"model\.text_encoder\.heads=4"),
    ],
)
def test_init_from_other_settings_is_rejected(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """Names and shapes are equal; the weights were trained for other pixels or heads."""
    save(create_model("tiny-resnet", **changes), tmp_path / "start")
    with pytest.raises(InputError, match=message):
        init_from(create_model("tiny-resnet"), tmp_path / "start")
    init_from(create_model("tiny-resnet", dropout=0.0, **changes), tmp_path / "start")


def test_init_from_fits_any_maximum_length_and_image_size(tmp_path: Path) -> None:
    """Positions of text tokens are kept or drawn, those of visual tokens are interpolated."""
    save(create_model("tiny-swin"), tmp_path)
    saved = load(tmp_path).vl_pos_embed.weight
    model = create_model("tiny-swin", image_size=96, max_length=30)
    drawn = model.vl_pos_embed.weight.detach().clone()
    assert init_from(model, tmp_path) == set(model.state_dict())
    positions = model.vl_pos_embed.weight
    assert torch.equal(positions[:21], saved[:21]) and torch.equal(positions[21:31], drawn[21:31])
    fine, coarse = positions[31:].split([12**2, 6**2])
    torch.testing.assert_close(fine.mean(0), saved[21:85].mean(0), atol=0.1, rtol=0)
    assert not torch.equal(coarse, drawn[-36:]) and positions.isfinite().all()
    shorter = create_model("tiny-swin", max_length=10)
    init_from(shorter, tmp_path)
    assert torch.equal(shorter.vl_pos_embed.weight, torch.cat([saved[:11], saved[21:]]))


@pytest.mark.parametrize("name", ["transvg-r50", "qrnet-swin-s"])
def test_converted_weights_start_every_row_of_the_tables(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At either length and another image size; what the published file lacks stays as the seed drew it."""
    narrow = {"width": 32, "layers": 1, "heads": 2, "dim_feedforward": 64}
    swin = {"backbone_kwargs": PRESETS["tiny-swin"]["visual_encoder"]["backbone_kwargs"], "width": 32}
    visual = swin if name == "qrnet-swin-s" else narrow | {"backbone": "resnet10t"}
    small = preset(name, image_size=64, text_encoder=narrow, fusion=narrow, visual_encoder=visual)
    monkeypatch.setitem(PRESETS, name, small)
    backbone = create_model(name).visual_encoder.backbone.state_dict()
    conversion = convert({key: value + 1 for key, value in backbone.items()}, "imagenet", model=name)
    write(conversion, tmp_path)

    tables = [table for key, table in read_tables().items() if key != "strength"]  # which is of `mini`
    rows = [row for table in tables for row in table.rows if row.student == name]
    changes = [{key[6:]: row.settings[key] for key in row.settings if key.startswith("model.")} for row in rows]
    assert len(rows) >= 5
    others: list[dict[str, Any]] = [{"max_length": 40}, {"image_size": 96}, {"pre_fusion_norm": True, "iou_head": True}]
    if name == "transvg-r50":
        others.append(Recipe.load("refcoco", "improved").model.overrides | {"max_length": 10, "image_size": 96})
    for change in [*(each for each in changes if each), *others]:
        torch.manual_seed(5)
        model = create_model(name, **change)
        drawn = {key: value.clone() for key, value in model.state_dict().items()}
        held = {key for key in drawn if key.startswith("visual_encoder.")} - set(conversion.new)
        assert init_from(model, tmp_path) == held
        for key, value in model.state_dict().items():
            assert torch.equal(value, drawn[key]) == (key not in held), key


def test_init_from_another_shape_is_rejected(tmp_path: Path) -> None:
    save(create_model("tiny-resnet"), tmp_path)
    with pytest.raises(InputError, match="holds a model of another shape"):
        init_from(create_model("tiny-resnet", fusion={"layers": 1}), tmp_path)
    (tmp_path / "conversion.yaml").write_text("[")
    with pytest.raises(InputError, match="Convert the published weights again"):
        init_from(create_model("tiny-resnet"), tmp_path)
