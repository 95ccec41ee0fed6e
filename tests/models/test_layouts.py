"""Weights as libraries keep them give the features of the network they came from, and other networks are named."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.swin_transformer import SwinTransformer
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    ResNetConfig,
    ResNetForImageClassification,
)

from epmvg.cli import main
from epmvg.core.types import InputError
from epmvg.models.convert import convert
from epmvg.models.grounder import Grounder
from epmvg.models.presets import PRESETS, preset

NARROW = {"width": 32, "layers": 1, "heads": 2, "dim_feedforward": 64}
SWIN: dict[str, Any] = {"embed_dim": 16, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 4, 8]}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = preset(
        "transvg-r50",
        image_size=64,
        text_encoder=NARROW,
        fusion=NARROW,
        visual_encoder=NARROW | {"backbone": "resnet26"},
    )
    monkeypatch.setitem(PRESETS, "transvg-r50", narrow)


def randomized(network: nn.Module) -> nn.Module:
    """Draw every tensor, statistics of batch norms included, so that no two of one shape are equal."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                is_scale = tensor.dim() == 1 and not name.endswith(("bias", "running_mean"))
                fan_in = tensor[0].numel() if tensor.dim() > 1 else 1
                tensor.copy_(1 + 0.1 * noise.abs() if is_scale else noise * (0.1 if fan_in == 1 else fan_in**-0.5))
    return network.eval()


def pixels(model: Grounder, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return an image [1, 3, S, S] whose lower third is padding, its mask, and what the encoder makes of both."""
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, side, side, dtype=torch.bool)
    mask[:, side * 2 // 3 :] = True
    return image, mask, model.visual_encoder.normalize_pixels(image, mask)


def detr(backbone: str) -> DetrForObjectDetection:
    sizes: dict[str, Any] = {"d_model": 32, "num_queries": 3, "encoder_layers": 1, "decoder_layers": 1}
    sizes |= {f"{part}_ffn_dim": 64 for part in ("encoder", "decoder")}
    config_of = cast(Any, DetrConfig)
    sizes |= {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    if backbone == "timm":
        made: dict[str, Any] = {"use_timm_backbone": True, "backbone": "resnet26", "use_pretrained_backbone": False}
        config = config_of(**sizes, **made, backbone_config=None)
    else:
        config = config_of(**sizes, use_timm_backbone=False, backbone=None, backbone_config=resnet_config())
    return cast(DetrForObjectDetection, randomized(DetrForObjectDetection(config)))


def resnet_config() -> Any:
    return cast(Any, ResNetConfig)(depths=[2, 2, 2, 2], out_features=["stage4"])


def as_folder(network: Any, folder: Path) -> Path:
    network.save_pretrained(folder)
    return folder


def as_pytorch_bin(network: Any, folder: Path) -> Path:
    network.save_pretrained(folder)
    torch.save(safetensors.torch.load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def as_bare_network_in_memory(network: Any, folder: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = network.model.state_dict()
    return state


@pytest.mark.parametrize(
    ("backbone", "saved"),
    [("timm", as_folder), ("transformers", as_pytorch_bin), ("timm", as_bare_network_in_memory)],
)
@torch.no_grad()
def test_a_detr_of_transformers_keeps_its_features(
    backbone: str, saved: Callable[[Any, Path], Any], tmp_path: Path
) -> None:
    network = detr(backbone)
    conversion = convert(saved(network, tmp_path), "detr")
    model = conversion.model
    assert not any(name.startswith("visual_encoder.") for name in conversion.new)
    image, mask, normalized = pixels(model, 160)
    expected = network.model(normalized, (~mask).long()).encoder_last_hidden_state
    tokens = model.visual_encoder.visual_tokens(model.visual_encoder.backbone_features(image, mask), mask)
    unpadded = ~model.visual_encoder.token_masks(mask)[0].flatten(1)
    assert 0 < unpadded.sum() < tokens.shape[1]
    torch.testing.assert_close(tokens[unpadded], expected[unpadded], atol=1e-4, rtol=1e-4)


DETR_NAMES = ["query_position_embeddings.weight", "encoder.layers.0.fc1.weight"]
DETR_NAMES += [f"encoder.layers.0.self_attn.{part}_proj.weight" for part in "qkv"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"dilation": True, "model_type": "detr"}, "states dilation=True"),
        ({"model_type": "conditional_detr"}, "states model_type=conditional_detr"),
        ({"encoder_attention_heads": 4}, "states nheads=4, and our model has nheads=2"),
        ({"backbone_config": {"downsample_in_bottleneck": True}}, "states downsample_in_bottleneck=True"),
        ({"backbone": None, "backbone_config": {"backbone": "resnet18"}}, "states backbone=resnet18"),
        ({"position_embedding_type": "learned"}, "states position_embedding=learned"),
        ([], r"config\.json cannot be read"),
    ],
)
def test_what_a_folder_states_is_not_contradicted(tmp_path: Path, config: Any, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"model\.safetensors does not exist\. Give .* a folder with"):
        convert(tmp_path, "detr")
    tensors = {f"model.{name}": torch.zeros(2) for name in DETR_NAMES}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=message):
        convert(tmp_path, "detr")


def test_queries_without_keys_are_rejected() -> None:
    state = {name: torch.zeros(2) for name in DETR_NAMES if "k_proj" not in name}
    with pytest.raises(InputError, match=r"not complete: 'transformer.encoder.layers.0.self_attn.k_proj.weight'"):
        convert(state, "detr")


class UnfoldMerging(nn.Module):
    """Patch merging as mmdetection computes it: channels of 2 x 2 tokens in the order of `nn.Unfold`."""

    def __init__(self, width: int, norm_layer: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.reduction, self.norm = nn.Linear(4 * width, 2 * width, bias=False), norm_layer(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[1] // 2, x.shape[2] // 2
        merged = F.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)
        out: Tensor = self.reduction(self.norm(merged)).unflatten(1, (rows, columns))
        return out


def torchvision_swin(**settings: Any) -> SwinTransformer:
    swin = SwinTransformer(patch_size=[4, 4], window_size=[7, 7], stochastic_depth_prob=0.0, **SWIN, **settings)
    return cast(SwinTransformer, randomized(swin))


def stages(swin: SwinTransformer, x: Tensor) -> Iterator[Tensor]:
    for number, part in enumerate(swin.features):
        x = part(x)
        if number % 2:
            yield x  # [1, H, W, C]


def own_stages(model: Grounder, x: Tensor) -> Iterator[Tensor]:
    swin = cast(Any, model.visual_encoder.backbone)
    x = swin.patch_embed(x)
    for stage in swin.layers:
        x = stage(x)
        yield x


AUTHORS = {"features.0.0.": "patch_embed.proj.", "features.0.2.": "patch_embed.norm."}
AUTHORS |= {f"features.{2 * stage + 1}.": f"layers.{stage}.blocks." for stage in range(4)}
AUTHORS |= {f"features.{2 * stage + 2}.": f"layers.{stage}.downsample." for stage in range(3)}
AUTHORS |= {".mlp.0.": ".mlp.fc1.", ".mlp.3.": ".mlp.fc2."}
MMDETECTION = {"features.0.0.": "patch_embed.projection.", "features.0.2.": "patch_embed.norm."}
MMDETECTION |= {f"features.{2 * stage + 1}.": f"stages.{stage}.blocks." for stage in range(4)}
MMDETECTION |= {f"features.{2 * stage + 2}.": f"stages.{stage}.downsample." for stage in range(3)}
MMDETECTION |= {".attn.": ".attn.w_msa.", ".mlp.0.": ".ffn.layers.0.0.", ".mlp.3.": ".ffn.layers.1."}


def renamed(name: str, names: dict[str, str]) -> str:
    for theirs, other in names.items():
        name = name.replace(theirs, other)
    return name


@pytest.mark.parametrize("names", [{}, AUTHORS], ids=["torchvision", "authors"])
@torch.no_grad()
def test_swin_for_imagenet_keeps_its_features(names: dict[str, str], tmp_path: Path) -> None:
    swin = torchvision_swin()
    torch.save({"model": {renamed(key, names): value for key, value in swin.state_dict().items()}}, tmp_path / "s.pth")
    model = convert(tmp_path / "s.pth", "imagenet", model="tiny-swin").model
    _, _, normalized = pixels(model, 64)
    for own, expected in zip(own_stages(model, normalized), stages(swin, normalized), strict=True):
        torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_swin_detector_of_mmdetection_keeps_its_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage by stage, with the norms and the neck's 1x1 convolutions behind them."""
    swin = torchvision_swin(downsample_layer=UnfoldMerging)
    after = nn.ModuleDict()
    for stage in range(4):
        after[f"norm{stage}"], after[f"conv{stage}"] = nn.LayerNorm(16 * 2**stage), nn.Conv2d(16 * 2**stage, 32, 1)
    randomized(after)
    backbone = {name: value for name, value in swin.state_dict().items() if name.startswith("features.")}
    state = {f"backbone.{renamed(name, MMDETECTION)}": value for name, value in backbone.items()}
    for name, value in after.state_dict().items():
        part, _, kind = name.partition(".")
        neck = f"neck.lateral_convs.{part[-1]}.conv.{kind}"
        state[f"backbone.{name}" if part.startswith("norm") else neck] = value
    state |= {"neck.fpn_convs.0.conv.bias": torch.ones(3), "bbox_head.atss_cls.bias": torch.ones(3)}
    history = logged_by_mmengine(monkeypatch)
    torch.save({"meta": {"epoch": 1}, "state_dict": state, "message_hub": {"loss": history}}, tmp_path / "epoch_1.pth")

    model = convert(tmp_path / "epoch_1.pth", "swin", model="tiny-swin").model
    _, _, normalized = pixels(model, 64)
    encoder = cast(Any, model.visual_encoder)
    for stage, (own, x) in enumerate(zip(own_stages(model, normalized), stages(swin, normalized), strict=True)):
        expected = after[f"conv{stage}"](after[f"norm{stage}"](x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        torch.testing.assert_close(encoder.lateral[stage](encoder.norms[stage](own)), expected, atol=1e-4, rtol=1e-4)
    state["backbone.stages.0.downsample.norm.weight"] = torch.ones(7)
    with pytest.raises(InputError, match="is not complete"):
        convert(state, "swin", model="tiny-swin")


def logged_by_mmengine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What mmdetection 3 leaves in a checkpoint beside the weights, pickled under its module's name."""
    module = ModuleType("mmengine.logging.history_buffer")
    buffer = type("HistoryBuffer", (), {"__module__": module.__name__})
    vars(module)["HistoryBuffer"] = buffer
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    history = buffer()
    vars(history).update(_log_history=np.array([0.5]), _count_history=np.array([1]), max_length=10)
    return history


@pytest.mark.parametrize("features_only", [False, True])
@torch.no_grad()
def test_swin_of_timm_keeps_its_features(features_only: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a size that needs no padding; timm pads after it has shifted."""
    monkeypatch.setitem(PRESETS, "tiny-swin", preset("tiny-swin", image_size=224))
    swin = randomized(timm.create_model("swin_tiny_patch4_window7_224", features_only=features_only, **SWIN))
    model = convert(swin.state_dict(), "imagenet", model="tiny-swin").model
    _, _, normalized = pixels(model, 224)
    whole = cast(Any, swin)
    expected = swin(normalized)[-1] if features_only else whole.layers(whole.patch_embed(normalized))
    torch.testing.assert_close(list(own_stages(model, normalized))[-1], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("library", ["timm", "transformers"])
@torch.no_grad()
def test_resnet_keeps_its_features(library: str) -> None:
    network: Any = timm.create_model("resnet26") if library == "timm" else ResNetForImageClassification(resnet_config())
    randomized(network)
    model = convert(network.state_dict(), "imagenet", model="transvg-r50").model
    image, mask, normalized = pixels(model, 64)
    features = model.visual_encoder.backbone_features(image, mask)
    whole = network.forward_features if library == "timm" else lambda x: network.resnet(x).last_hidden_state
    torch.testing.assert_close(features, whole(normalized), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("network", "name"),
    [
        ("MDETR", "transformer.text_encoder.embeddings.word_embeddings.weight"),
        ("Dynamic MDETR", "update_content_queries.0.layers.0.weight"),
        ("CLIP-VG", "image_encoder_clip_vg.conv1.weight"),
        ("OneRef or another BEiT-3", "beit3.encoder.layers.0.self_attn.q_proj.A.weight"),
        ("Grounding DINO", "transformer.encoder.fusion_layers.0.gamma_v"),
        ("GLIP", "language_backbone.body.model.embeddings.word_embeddings.weight"),
        ("TransVG++", "visual_branch.lang_modulation_pre_blocks.0.fc_out.weight"),
        ("SeqTR", "lan_enc.embedding.weight"),
        ("VLTVG", "trans_encoder.layers.0.linear1.weight"),
        ("Conditional DETR", "model.decoder.layers.0.sa_qcontent_proj.weight"),
        ("Deformable DETR", "transformer.encoder.layers.0.self_attn.sampling_offsets.weight"),
    ],
)
def test_other_networks_are_named(network: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "weights.pth", tmp_path / "run"
    names = ["transformer.encoder.layers.0.linear1.weight", "query_embed.weight", "class_embed.weight"]
    torch.save({"model": dict.fromkeys([*names, name], torch.zeros(2))}, file)
    with pytest.raises(SystemExit) as exit_:
        main(["convert", str(file), "--as", "detr", "--out", str(out)])
    assert exit_.value.code == 2 and not out.exists()
    assert f"{file} is {network}, another network." in capsys.readouterr().err.replace("\n", " ")


def test_grounding_dino_of_transformers_is_named() -> None:
    with torch.device("meta"):
        state = GroundingDinoForObjectDetection(GroundingDinoConfig()).state_dict()
    with pytest.raises(InputError, match="is Grounding DINO, another network"):
        convert(state, "swin")
