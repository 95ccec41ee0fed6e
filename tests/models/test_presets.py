"""Settings that are out of range, unknown or contradictory are rejected in one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from epmvg.core.types import InputError
from epmvg.models.factory import build, create_model
from epmvg.models.presets import PRESETS, preset


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"visual_encoder": {"frozen": ["no_such_layer"]}},
            r"model\.visual_encoder\.frozen names 'no_such_layer'.*conv1",
        ),
        ({"visual_encoder": {"frozen": "small"}}, r"names 'small'"),
        ({"visual_encoder": {"frozen": "layer"}}, r"names 'layer'.*layer1"),
        ({"text_encoder": {"frozen": ["encoder.layer.9"]}}, r"model\.text_encoder\.frozen names 'encoder\.layer\.9'"),
        ({"position": "sin"}, r"model\.position=sin is not valid: input should be 'learned' or 'sine'"),
        ({"vls": "last"}, r"model\.vls=last"),
        ({"image_size": -32}, r"model\.image_size=-32 is not valid: input should be greater than 0"),
        ({"image_size": "abc"}, r"model\.image_size=abc"),
        ({"image_size": None}, r"model\.image_size=None"),
        ({"max_length": 1}, r"model\.max_length=1"),
        ({"max_length": 1000}, r"model\.max_length=1000"),
        ({"dropout": 1.5}, r"model\.dropout=1\.5"),
        ({"pre_fusion_norm": "perhaps"}, r"model\.pre_fusion_norm=perhaps"),
        ({"visual_encoder": {"strides": [64]}}, r"model\.visual_encoder\.strides has 64.*2, 4, 8, 16, 32"),
        ({"visual_encoder": {"strides": [16, 16]}}, r"twice"),
        ({"visual_encoder": {"strides": []}}, r"model\.visual_encoder\.strides=\[\]"),
        (
            {"visual_encoder": {"backbone": "resnet5000"}},
            r"timm cannot build model\.visual_encoder\.backbone=resnet5000",
        ),
        ({"visual_encoder": {"std": [0, 1, 1]}}, r"model\.visual_encoder\.std\.0=0"),
        ({"visual_encoder": {"mean": [0.5]}}, r"model\.visual_encoder\.mean"),
        ({"visual_encoder": {"mean": None}}, r"model\.visual_encoder\.mean=None"),
        (
            {"visual_encoder": {"heads": 3}},
            r"model\.visual_encoder\.heads=3 does not divide model\.visual_encoder\.width=32",
        ),
        ({"fusion": {"heads": 3}}, r"model\.fusion\.heads=3 does not divide model\.fusion\.width=32"),
        ({"fusion": {"width": 30}, "position": "sine"}, r"model\.fusion\.width=30 does not fit sine positions"),
        ({"fusion": 3}, r"fusion is a group of settings"),
        ({"text_encoder": {"layers": 0}}, r"model\.text_encoder\.layers=0"),
    ],
)
def test_invalid_settings_are_rejected(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_model("tiny-resnet", **setting)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"gates": "of"}, r"model\.visual_encoder\.gates=of is not valid"),
        ({"strides": [5]}, r"model\.visual_encoder\.strides has 5. Use 4, 8, 16, 32, 64"),
        ({"backbone": "resnet18"}, "not a Swin"),
        ({"backbone_kwargs": {"depths": "x"}}, r"timm cannot build"),
    ],
)
def test_invalid_settings_of_a_swin_are_rejected(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_model("tiny-swin", visual_encoder=setting)


def test_yaml_off_turns_gates_off() -> None:
    assert not create_model("tiny-swin", visual_encoder={"gates": False}).visual_encoder.query_aware


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("tiny") or name == "mini"])
def test_settings_are_those_of_the_preset(name: str) -> None:
    assert build(preset(name)).settings == preset(name)


def test_unknown_names_are_rejected_with_a_suggestion() -> None:
    with pytest.raises(InputError, match="Did you mean 'mini'"):
        create_model("mimi")
    with pytest.raises(InputError, match=r"model\.vls=last is not valid: input should be 'first' or 'mean'"):
        create_model("tiny-resnet", vls="last")
    with pytest.raises(InputError, match="Did you mean 'image_size'"):
        create_model("tiny-resnet", image_siz=3)
    with pytest.raises(InputError, match=r"model tiny-resnet\.fusion has no setting 'laiers'"):
        create_model("tiny-resnet", fusion={"laiers": 3})
