"""Settings of a model: what cannot be meant is refused in one sentence before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from transformers import BertConfig, BertModel

from epmvg.core.types import InputError
from epmvg.models.factory import build, create_model, default_tokenizer, init_from, save
from epmvg.models.grounder import Grounder
from epmvg.models.presets import PRESETS, preset
from epmvg.models.pretrained import load_bert, load_pretrained


def trained(network: torch.nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def test_frozen_as_text_is_one_name() -> None:
    as_list = create_model(
        "tiny-resnet", visual_encoder={"frozen": ["layer1"]}, text_encoder={"frozen": ["embeddings"]}
    )
    as_text = create_model("tiny-resnet", visual_encoder={"frozen": "layer1"}, text_encoder={"frozen": "embeddings"})
    assert trained(as_text) == trained(as_list)
    stopped = trained(create_model("tiny-resnet")) - trained(as_text)
    assert stopped and all(".layer1." in name or ".embeddings." in name for name in stopped)
    assert not trained(create_model("tiny-swin", visual_encoder={"frozen": "all"}).visual_encoder.backbone)


@pytest.mark.parametrize(
    ("setting", "said"),
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
        ({"normalize": "perhaps"}, r"model\.normalize=perhaps"),
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
def test_what_cannot_be_meant_is_refused(setting: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        create_model("tiny-resnet", **setting)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"gates": "of"}, r"model\.visual_encoder\.gates=of is not valid"),
        ({"pool": "contents"}, r"model\.visual_encoder\.pool=contents"),
        ({"strides": [5]}, r"model\.visual_encoder\.strides has 5: use 4, 8, 16, 32, 64"),
        ({"backbone": "resnet18"}, r"no Swin"),
        ({"shape": {"depths": "x"}}, r"timm cannot build"),
    ],
)
def test_a_swin_s_settings_are_checked(setting: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        create_model("tiny-swin", visual_encoder=setting)


def test_off_in_yaml_turns_gates_off() -> None:
    assert not create_model("tiny-swin", visual_encoder={"gates": False}).visual_encoder.query_aware


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("tiny") or name == "mini"])
def test_settings_stay_as_they_are_written(name: str) -> None:
    assert build(preset(name)).settings == preset(name)


def test_pretrained_backbones_are_named_by_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision's ImageNet-1k weights for ResNet, as TransVG and DETR start; ImageNet-1k for QRNet's Swin."""
    named = {name: settings["visual_encoder"]["backbone"] for name, settings in PRESETS.items()}
    assert named["transvg-r50"] == "resnet50.tv_in1k" and named["transvg-r101"] == "resnet101.tv_in1k"
    assert named["qrnet-swin-s"] == named["transvg-swin-s"] == "swin_small_patch4_window7_224.ms_in1k"
    known = set(timm.list_pretrained())
    assert {name for name in named.values() if "." in name} <= known

    model = create_model("tiny-resnet")
    fetched = create_model("tiny-resnet").visual_encoder.backbone
    monkeypatch.setattr("epmvg.models.pretrained.timm.create_model", lambda name, pretrained: fetched)
    monkeypatch.setattr("epmvg.models.pretrained.load_bert", lambda *_: None)
    load_pretrained(model)
    assert model.settings["visual_encoder"]["backbone"] == "resnet10t.c3_in1k"  # what was loaded is written down
    assert "." not in PRESETS["tiny-resnet"]["visual_encoder"]["backbone"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"visual_encoder": {"mean": [0.5] * 3, "std": [0.5] * 3}}, r"model\.visual_encoder\.mean=\[0\.5"),
        ({"vls": "mean"}, r"model\.vls=mean and this model has first"),
        ({"visual_encoder": {"heads": 4}}, r"model\.visual_encoder\.heads=4"),
        ({"fusion": {"heads": 4}}, r"model\.fusion\.heads=4"),
        ({"text_encoder": {"heads": 4}}, r"model\.text_encoder\.heads=4"),
    ],
)
def test_a_start_from_weights_of_another_meaning_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    """Names and shapes agree; the pixels or the heads they were trained for do not."""
    save(create_model("tiny-resnet", **changes), tmp_path / "start")
    with pytest.raises(InputError, match=said):
        init_from(create_model("tiny-resnet"), tmp_path / "start")
    init_from(create_model("tiny-resnet", dropout=0.0, **changes), tmp_path / "start")


@pytest.fixture
def bert(tmp_path: Path) -> tuple[Grounder, Path]:
    model = create_model("tiny-resnet")
    sizes = model.settings["text_encoder"]
    config = BertConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["width"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        intermediate_size=sizes["dim_feedforward"],
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    default_tokenizer().save_pretrained(tmp_path / "bert")
    return model, tmp_path / "bert"


def rewritten(folder: Path, change: Any) -> dict[str, torch.Tensor]:
    file = folder / "model.safetensors"
    state = safetensors.torch.load_file(file)
    safetensors.torch.save_file({new: value for name, value in state.items() if (new := change(name))}, file)
    return state


def test_a_bert_folder_is_read_or_refused_whole(bert: tuple[Grounder, Path], capfd: pytest.CaptureFixture[str]) -> None:
    model, folder = bert
    state = rewritten(folder, lambda name: name)
    load_bert(model, str(folder))
    loaded = model.text_encoder.bert.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items() if name in loaded)
    rewritten(folder, lambda name: name if "attention.self.query" not in name else None)
    with pytest.raises(InputError, match=r"lacks encoder\.layer\.0\.attention\.self\.query\.bias \(and 1 more\)"):
        load_bert(model, str(folder))
    rewritten(folder, lambda name: f"text_encoder.model.{name}")
    with pytest.raises(InputError, match="lacks embeddings"):
        load_bert(model, str(folder))
    assert all(torch.equal(model.text_encoder.bert.state_dict()[name], value) for name, value in loaded.items())
    assert "MISSING" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(("key", "value"), [("hidden_act", "relu"), ("layer_norm_eps", 1e-5)])
def test_a_bert_that_computes_otherwise_is_refused(bert: tuple[Grounder, Path], key: str, value: Any) -> None:
    model, folder = bert
    config = BertConfig.from_pretrained(folder)
    setattr(config, key, value)
    config.save_pretrained(folder)
    with pytest.raises(InputError, match=f"{key}={value}"):
        load_bert(model, str(folder))
