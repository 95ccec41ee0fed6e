"""Published weights are converted completely or rejected, and no file runs code."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from epmvg.cli import main
from epmvg.core.types import InputError
from epmvg.models.checkpoint_files import read_published
from epmvg.models.convert import convert, write
from epmvg.models.factory import create_model, default_tokenizer, load
from epmvg.models.grounder import Grounder
from epmvg.models.presets import PRESETS, preset

Checkpoint = dict[str, Any]


def published_name(name: str) -> str:
    """The published name of one of our parameters (TransVG)."""
    pairs = [
        ("visual_encoder.backbone.", "visumodel.backbone.0.body."),
        ("visual_encoder.encoder.", "visumodel.transformer.encoder."),
        ("visual_encoder.", "visumodel."),
        ("text_encoder.", "textmodel."),
        ("fusion.", "vl_transformer.encoder."),
        ("box_head.", "bbox_embed."),
    ]
    for own, theirs in pairs:
        if name.startswith(own):
            return theirs + name.removeprefix(own)
    return name


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A TransVG-R50 in all but size: the same names with narrow text and fusion."""
    narrow = preset(
        "transvg-r50",
        image_size=64,
        text_encoder={"width": 32, "layers": 1, "heads": 2, "dim_feedforward": 64},
        fusion={"width": 32, "layers": 1, "heads": 2, "dim_feedforward": 64},
        visual_encoder={"width": 32, "layers": 1, "heads": 2, "dim_feedforward": 64},
    )
    monkeypatch.setitem(PRESETS, "transvg-r50", narrow)


@pytest.fixture
def student() -> Grounder:
    torch.manual_seed(0)
    return create_model("transvg-r50").eval()


@pytest.fixture
def checkpoint(student: Grounder) -> Checkpoint:
    """What the published training script would have saved for `student`."""
    state = {published_name(name): tensor.clone() for name, tensor in student.state_dict().items()}
    state["textmodel.bert.pooler.dense.weight"] = torch.zeros(32, 32)
    state["textmodel.bert.embeddings.position_ids"] = torch.arange(512)[None]
    return {
        "model": state,
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "lr_scheduler": {"step_size": 60, "_last_lr": [1e-4]},
        "epoch": 3,
        "args": argparse.Namespace(lr=1e-4, device="cuda", aug_crop=True),
        "val_accu": np.float64(0.75),
    }


def saved(content: Any, folder: Path, name: str = "published.pth") -> Path:
    file = folder / name
    torch.save(content, file)
    return file


@torch.no_grad()
def test_a_converted_checkpoint_predicts_as_the_student(
    student: Grounder, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    conversion = convert(saved(checkpoint, tmp_path), "transvg")
    assert conversion.new == [] and len(conversion.ignored) == 2
    write(conversion, tmp_path / "run")
    image, image_mask = torch.rand(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool)
    words = student.tokenize(["a dog", "the cat on the left"])
    assert torch.equal(load(tmp_path / "run")(image, image_mask, *words).box, student(image, image_mask, *words).box)


class Foreign:
    """A class that only code can build."""


def drop(name: str) -> Callable[[Checkpoint], None]:
    def change(checkpoint: Checkpoint) -> None:
        del checkpoint["model"][name]

    return change


def put(name: str, value: Tensor) -> Callable[[Checkpoint], None]:
    def change(checkpoint: Checkpoint) -> None:
        checkpoint["model"][name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("visumodel.input_proj.weight"), "holds no transvg weights"),
        (drop("bbox_embed.layers.0.weight"), "box_head.layers.0.weight"),
        (put("bbox_embed.layers.0.weight", torch.zeros(3, 3)), "bbox_embed.layers.0.weight"),
        (put("bbox_embed.layers.0.bias", torch.full((32,), torch.nan)), "bbox_embed.layers.0.bias"),
        (put("surprise.weight", torch.zeros(1)), "surprise.weight"),
        (put("vl_pos_embed.weight", torch.zeros(24, 32)), "24 positions"),
    ],
)
def test_wrong_or_partial_files_are_rejected(
    checkpoint: Checkpoint, tmp_path: Path, change: Callable[[Checkpoint], None], message: str
) -> None:
    change(checkpoint)
    with pytest.raises(InputError, match=message):
        convert(saved(checkpoint, tmp_path), "transvg")


def test_code_in_a_file_is_not_run(checkpoint: Checkpoint, tmp_path: Path) -> None:
    checkpoint["args"] = Foreign()
    with pytest.raises(InputError, match="Foreign"):
        read_published(saved(checkpoint, tmp_path))


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"dilation": True}, "dilation=True"),
        ({"pre_norm": True}, "pre_norm=True"),
        ({"nheads": 4}, r"nheads=4, and our model has nheads=2"),
        ({"vl_nheads": 8}, "vl_nheads=8"),
        ({"position_embedding": "learned"}, "position_embedding=learned"),
        ({"backbone": "resnet101"}, "backbone=resnet101"),
        ({"imsize": 640}, "imsize=640, and its 25 positions fit an image size of 64"),
        ({"max_query_len": 30}, r"25 positions fit no maximum length of \[30\]"),
    ],
)
@pytest.mark.parametrize("space", [argparse.Namespace, dict])
def test_what_a_file_states_is_not_contradicted(
    checkpoint: Checkpoint, tmp_path: Path, stated: dict[str, Any], message: str, space: Any
) -> None:
    """Heads, dilation, image size: they leave no trace in shapes, and decide what the tensors mean."""
    checkpoint["args"] = space(**stated)
    with pytest.raises(InputError, match=message):
        convert(saved(checkpoint, tmp_path), "transvg")


def test_what_a_file_states_is_used(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A length other than the published ones is read where it is stated; paths among the settings do no harm."""
    checkpoint["model"]["vl_pos_embed.weight"] = torch.zeros(1 + 30 + 4, 32)
    right = {"max_query_len": 30, "imsize": 64, "dilation": False, "nheads": 2, "vl_nheads": 2, "backbone": "resnet50"}
    checkpoint["args"] = argparse.Namespace(**right, output_dir=Path("runs/x"), old=PureWindowsPath("c:/y"))
    assert convert(saved(checkpoint, tmp_path), "transvg").model.max_length == 30
    checkpoint["model"]["vl_pos_embed.weight"] = torch.zeros(1 + 20 + 16, 32)  # stride 16 at 64 px
    checkpoint["args"] = argparse.Namespace(dilation=True, imsize=64)
    with pytest.raises(InputError, match="dilation=True"):
        convert(saved(checkpoint, tmp_path), "transvg")


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "_orig_mod.", "student.", "module._orig_mod.", "model.student."]
)
def test_prefixes_of_wrappers_are_taken_off(checkpoint: Checkpoint, tmp_path: Path, prefix: str) -> None:
    plain = checkpoint["model"]
    wrapped = {prefix + name: value for name, value in plain.items()}
    assert read_published(saved({"state_dict": wrapped}, tmp_path))[0].keys() == plain.keys()
    assert read_published(saved({"model": {"state_dict": wrapped}}, tmp_path))[0].keys() == plain.keys()
    wrapped["criterion.weight"] = torch.zeros(1)  # not all begin with it: left alone
    assert wrapped.keys() == read_published(saved(wrapped, tmp_path))[0].keys()


def test_messages_name_the_kind_that_fits(tmp_path: Path) -> None:
    names = ["transformer.encoder.layers.0.linear1.weight", "query_embed.weight", "class_embed.weight"]
    with pytest.raises(InputError, match="give --as detr"):
        convert(saved(dict.fromkeys(names, torch.zeros(1)), tmp_path), "transvg")
    with pytest.raises(InputError, match="of another network"):  # a relative of DETR, but not DETR
        convert(saved({names[0]: torch.zeros(1)}, tmp_path), "transvg")


def test_other_files_are_rejected_by_name(tmp_path: Path) -> None:
    (tmp_path / "noise.pth").write_bytes(b"not weights")
    (tmp_path / "noise.safetensors").write_bytes(b"not weights")
    for name in ("noise.pth", "noise.safetensors", "absent.pth"):
        with pytest.raises(InputError, match=name):
            read_published(tmp_path / name)
    with pytest.raises(InputError, match="no weights"):
        read_published(saved([1, 2], tmp_path))


def test_detr_fills_the_visual_encoder_only(student: Grounder, tmp_path: Path) -> None:
    detr = {
        published_name(name).removeprefix("visumodel."): tensor + 1
        for name, tensor in student.state_dict().items()
        if name.startswith("visual_encoder.")
    }
    detr |= {"transformer.decoder.norm.weight": torch.ones(3), "class_embed.bias": torch.ones(92)}
    detr |= {"query_embed.weight": torch.ones(3, 3), "class_embed.weight": torch.ones(92, 3)}
    conversion = convert(saved({"model": detr}, tmp_path), "detr")
    assert {name.split(".")[0] for name in conversion.new} >= {"text_encoder", "fusion", "box_head"}
    assert not any(name.startswith("visual_encoder.") for name in conversion.new)
    own = conversion.model.state_dict()
    for name, tensor in student.state_dict().items():
        if name.startswith("visual_encoder."):
            assert torch.equal(own[name], tensor + 1)
    with pytest.raises(InputError, match="--as detr"):
        convert(detr, "transvg")


def test_imagenet_and_a_bert_from_a_folder(student: Grounder, tmp_path: Path) -> None:
    backbone = student.visual_encoder.backbone.state_dict() | {"fc.weight": torch.zeros(5, 5)}
    bert = BertModel(
        BertConfig(vocab_size=30_522, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
    )
    bert.save_pretrained(tmp_path / "bert")
    default_tokenizer().save_pretrained(tmp_path / "bert")
    conversion = convert(backbone, "imagenet", model="transvg-r50", bert=str(tmp_path / "bert"))
    assert conversion.model.text_encoder.width == 64
    assert conversion.ignored == {"fc.weight": "the classifier of ImageNet"}
    words = conversion.model.text_encoder.bert.embeddings.word_embeddings
    assert isinstance(words, nn.Embedding)
    assert torch.equal(words.weight, bert.embeddings.word_embeddings.weight)
    with pytest.raises(InputError, match="--model"):
        convert(backbone, "imagenet")


def test_a_swin_detector_fills_backbone_and_neck() -> None:
    """Published names of patch merging, norms and 1x1 convolutions are mapped to ours."""
    state = create_model("tiny-swin").state_dict()
    detector: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("visual_encoder.norms."):
            detector["backbone.norm" + name.removeprefix("visual_encoder.norms.")] = tensor + 1
        elif name.startswith("visual_encoder.lateral."):
            number, kind = name.split(".")[2:]
            value = tensor[..., None, None] if kind == "weight" else tensor
            detector[f"neck.lateral_convs.{number}.conv.{kind}"] = value + 1
        elif name.startswith("visual_encoder.backbone."):
            parts = name.removeprefix("visual_encoder.").split(".")
            if parts[3:4] == ["downsample"]:
                parts[2] = str(int(parts[2]) - 1)
            detector[".".join(parts)] = tensor + 1
    detector |= {"roi_head.bbox_head.fc_cls.bias": torch.ones(81), "neck.fpn_convs.0.conv.bias": torch.ones(256)}
    detector["backbone.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
    conversion = convert(detector, "swin", model="tiny-swin")
    for name, tensor in conversion.model.state_dict().items():
        if name.startswith("visual_encoder.") and not re.search("scale_embed|_gates", name):
            assert torch.equal(tensor, state[name] + 1), name


def test_the_command_accounts_for_everything(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = saved(checkpoint, tmp_path), tmp_path / "run"
    with pytest.raises(SystemExit) as exit_:
        main(["convert", str(file), "--as", "transvg", "--out", str(out)])
    assert exit_.value.code == 0
    counts = re.findall(r"^(?:converted|ignored) +(\d+)", capsys.readouterr().out, re.MULTILINE)
    assert sum(map(int, counts)) == len(checkpoint["model"])
    with pytest.raises(SystemExit) as exit_:
        main(["convert", str(file), "--as", "transvg", "--out", str(out)])
    assert exit_.value.code == 2
