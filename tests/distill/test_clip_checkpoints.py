"""Every form of a CLIP gives the embeddings of an independent implementation; errors name the remedy."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.torch
import torch
from open_clip import pretrained
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, SiglipConfig, SiglipModel

from epmvg.core.types import InputError
from epmvg.distill.local_files import is_local
from epmvg.distill.teacher import ClipTeacher

ENOUGH = 0.999998  # GELU in place of QuickGELU stays below it, with random weights too
PHRASES = ["a dog on the left", "the red apple", "A man's 2nd coat, in blue!", "word " * 90]
TINY: dict[str, Any] = {
    "embed_dim": 48,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}


def images() -> Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def spread(model: Any) -> Any:
    """Draw weights large enough for an activation to matter."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=random) * (2 / parameter.shape[-1]) ** 0.5)
            elif "logit" not in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return model.eval()


@cache
def published(quick: bool) -> Any:
    return spread(open_clip.CLIP(**TINY, quick_gelu=quick))


@cache
def transformers_twin(model: Any, quick: bool) -> CLIPModel:
    """The same weights in transformers' own implementation, names and attention mapped by hand."""
    vision, text = TINY["vision_cfg"], TINY["text_cfg"]
    act = "quick_gelu" if quick else "gelu"
    config = CLIPConfig(
        projection_dim=48,
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": 1,
            "image_size": 32,
            "patch_size": 8,
            "projection_dim": 48,
            "hidden_act": act,
        },
        text_config={
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": text["layers"],
            "num_attention_heads": 1,
            "vocab_size": 49408,
            "max_position_embeddings": 77,
            "projection_dim": 48,
            "hidden_act": act,
            "bos_token_id": 49406,
            "eos_token_id": 49407,
        },
    )
    twin: CLIPModel = CLIPModel(config).eval()  # type: ignore[no-untyped-call]
    state, own = twin.state_dict(), model.state_dict()
    simple = {
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "logit_scale": "logit_scale",
    }
    norms = {"vision_model.pre_layrnorm": "visual.ln_pre", "vision_model.post_layernorm": "visual.ln_post"}
    norms["text_model.final_layer_norm"] = "ln_final"
    for tower, blocks in (("vision_model", "visual.transformer"), ("text_model", "transformer")):
        for layer in range(2):
            here, there = f"{tower}.encoder.layers.{layer}", f"{blocks}.resblocks.{layer}"
            norms |= {f"{here}.layer_norm1": f"{there}.ln_1", f"{here}.layer_norm2": f"{there}.ln_2"}
            norms |= {f"{here}.mlp.fc1": f"{there}.mlp.c_fc", f"{here}.mlp.fc2": f"{there}.mlp.c_proj"}
            norms |= {f"{here}.self_attn.out_proj": f"{there}.attn.out_proj"}
            for kind in ("weight", "bias"):
                parts = own[f"{there}.attn.in_proj_{kind}"].chunk(3)
                for name, part in zip("qkv", parts, strict=True):
                    state[f"{here}.self_attn.{name}_proj.{kind}"] = part
    simple |= {f"{a}.{kind}": f"{b}.{kind}" for a, b in norms.items() for kind in ("weight", "bias")}
    state |= {a: own[b] for a, b in simple.items()}
    state["visual_projection.weight"] = own["visual.proj"].T
    state["text_projection.weight"] = own["text_projection"].T
    twin.load_state_dict(state)
    return twin


@torch.no_grad()
def expected(twin: Any, teacher: ClipTeacher, tokens: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (teacher.preprocess.mean, teacher.preprocess.std))
    seen = twin.get_image_features(pixel_values=(images() - mean) / std).pooler_output
    return seen, twin.get_text_features(input_ids=tokens).pooler_output


def check(teacher: ClipTeacher, seen: Tensor, read: Tensor) -> None:
    answer = teacher(images(), PHRASES)
    assert answer.image is not None and answer.text is not None
    cosines = [
        F.cosine_similarity(a.double(), b.double()).min().item() for a, b in ((answer.image, seen), (answer.text, read))
    ]
    print(f"cosine of images {cosines[0]:.9f}, of phrases {cosines[1]:.9f}")  # -rP shows it
    assert min(cosines) >= ENOUGH


@pytest.fixture
def architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny architecture with a twin, and tags like OpenAI's and LAION's, in open_clip's registry."""
    for name, quick in (("ViT-tiny", {}), ("ViT-tiny-quickgelu", {"quick_gelu": True})):
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, TINY | quick)
    tags = {"openai": open_clip.get_pretrained_cfg("ViT-B-32", "openai")}
    tags["laion"] = open_clip.get_pretrained_cfg("ViT-B-32", "laion2b_s34b_b79k")
    monkeypatch.setitem(pretrained._PRETRAINED, "ViT-tiny", tags)
    monkeypatch.setitem(pretrained._PRETRAINED, "ViT-tiny-quickgelu", {"openai": tags["openai"]})
    return "ViT-tiny"


def clip_tokens() -> Tensor:
    tokens: Tensor = open_clip.SimpleTokenizer(context_length=77)(PHRASES)
    return tokens


def archive(model: Any, file: Path) -> None:
    """Write the state of a model as a TorchScript archive of modules that only hold it."""

    class Holder(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    root = Holder()
    for name, tensor in model.state_dict().items():
        *path, last = name.split(".")
        place = root
        for part in path:
            if part not in place._modules:
                place.add_module(part, Holder())
            place = place._modules[part]  # type: ignore[assignment]
        place.register_parameter(last, nn.Parameter(tensor.clone(), requires_grad=False))
    for number in ("input_resolution", "context_length", "vocab_size"):
        root.register_buffer(number, torch.tensor(32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(root, torch.zeros(1)), str(file))


def write_folder(folder: Path, model: Any, name: str, quick: bool) -> Path:
    folder.mkdir()
    settings = {"model_cfg": TINY | {"quick_gelu": quick}, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3]}}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    state = model.state_dict()
    if name.endswith(".safetensors"):
        safetensors.torch.save_file(state, folder / name)
    else:
        torch.save(state, folder / name)
    return folder


FORMS: dict[str, Callable[[Any, Any, str, Path, pytest.MonkeyPatch], ClipTeacher]] = {}


def form(name: str) -> Callable[[Any], Any]:
    def keep(make: Any) -> Any:
        FORMS[name] = make
        return make

    return keep


@form("tag openai, plain name")
def _tag(quick: Any, plain: Any, name: str, folder: Path, patch: pytest.MonkeyPatch) -> ClipTeacher:
    torch.save(quick.state_dict(), folder / "w.pt")
    patch.setattr(open_clip.factory, "download_pretrained", lambda cfg, cache_dir=None: str(folder / "w.pt"))
    return ClipTeacher(name, "openai")


@form("tag openai, -quickgelu name")
def _tag_of_twin(quick: Any, plain: Any, name: str, folder: Path, patch: pytest.MonkeyPatch) -> ClipTeacher:
    torch.save(quick.state_dict(), folder / "w.pt")
    patch.setattr(open_clip.factory, "download_pretrained", lambda cfg, cache_dir=None: str(folder / "w.pt"))
    return ClipTeacher(f"{name}-quickgelu", "OpenAI")


@form("OpenAI archive, alone")
def _archive(quick: Any, plain: Any, name: str, folder: Path, patch: pytest.MonkeyPatch) -> ClipTeacher:
    archive(quick, folder / "ViT-B-32.pt")
    return ClipTeacher(folder / "ViT-B-32.pt")


@form("OpenAI archive, plain name")
def _archive_named(quick: Any, plain: Any, name: str, folder: Path, patch: pytest.MonkeyPatch) -> ClipTeacher:
    archive(quick, folder / "ViT-B-32.pt")
    return ClipTeacher(name, folder / "ViT-B-32.pt")


@form("OpenAI state_dict, alone")
def _openai_state(quick: Any, plain: Any, name: str, folder: Path, patch: pytest.MonkeyPatch) -> ClipTeacher:
    numbers = {key: torch.tensor(32) for key in ("input_resolution", "context_length", "vocab_size")}
    torch.save(quick.state_dict() | numbers, folder / "sd.pt")
    return ClipTeacher(folder / "sd.pt")


@form("state_dict .pt, -quickgelu name")
def _state(quick: Any, plain: Any, name: str, folder: Path, patch: pytest.MonkeyPatch) -> ClipTeacher:
    torch.save(quick.state_dict(), folder / "sd.pt")
    return ClipTeacher(f"{name}-quickgelu", folder / "sd.pt")


@form("epoch_N.pt with module., quick_gelu=true")
def _epoch(quick: Any, plain: Any, name: str, folder: Path, patch: pytest.MonkeyPatch) -> ClipTeacher:
    wrapped = {f"module.{key}": value for key, value in quick.state_dict().items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": wrapped, "optimizer": {"state": {}}}, folder / "epoch_3.pt")
    return ClipTeacher(name, folder / "epoch_3.pt", quick_gelu=True)


@form("GELU .bin, quick_gelu=false")
def _bin(quick: Any, plain: Any, name: str, folder: Path, patch: pytest.MonkeyPatch) -> ClipTeacher:
    torch.save(plain.state_dict(), folder / "pytorch_model.bin")
    return ClipTeacher(name, folder / "pytorch_model.bin", quick_gelu=False)


@form("GELU .safetensors, quick_gelu=false")
def _safetensors(quick: Any, plain: Any, name: str, folder: Path, patch: pytest.MonkeyPatch) -> ClipTeacher:
    safetensors.torch.save_file(plain.state_dict(), folder / "w.safetensors")
    return ClipTeacher(name, folder / "w.safetensors", quick_gelu=False)


@form("GELU configuration .json + .pt")
def _json(quick: Any, plain: Any, name: str, folder: Path, patch: pytest.MonkeyPatch) -> ClipTeacher:
    (folder / "c.json").write_text(json.dumps(TINY))
    torch.save(plain.state_dict(), folder / "w.pt")
    return ClipTeacher(folder / "c.json", folder / "w.pt")


for _name in (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_model.bin",
    "open_clip_pytorch_model.bin",
):

    @form(f"open_clip folder, {_name}")
    def _folder(
        quick: Any, plain: Any, name: str, folder: Path, patch: pytest.MonkeyPatch, file: str = _name
    ) -> ClipTeacher:
        return ClipTeacher(write_folder(folder / "t", quick, file, True))


@form("GELU open_clip folder, local-dir:")
def _local(quick: Any, plain: Any, name: str, folder: Path, patch: pytest.MonkeyPatch) -> ClipTeacher:
    return ClipTeacher(f"local-dir:{write_folder(folder / 't', plain, 'open_clip_model.safetensors', False)}")


def hub_cache(made: Path, repository: str, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """Lay a folder where the hub's cache would have it, and go offline."""
    from huggingface_hub import constants

    home = cache / f"models--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    (home / "snapshots").mkdir()
    made.rename(home / "snapshots" / ("0" * 40))
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_OFFLINE", True)


@form("hf-hub:OWNER/NAME, from the cache")
def _hub(quick: Any, plain: Any, name: str, folder: Path, patch: pytest.MonkeyPatch) -> ClipTeacher:
    made = write_folder(folder / "t", quick, "open_clip_pytorch_model.bin", True)
    hub_cache(made, "owner/clip-tiny", folder / "cache", patch)
    return ClipTeacher("hf-hub:owner/clip-tiny")


@form("OWNER/NAME, a CLIPModel from the cache")
def _hub_transformers(quick: Any, plain: Any, name: str, folder: Path, patch: pytest.MonkeyPatch) -> ClipTeacher:
    transformers_twin(quick, True).save_pretrained(folder / "t")
    hub_cache(folder / "t", "owner/clip-tiny", folder / "cache", patch)
    return ClipTeacher("owner/clip-tiny")


@form("OWNER/NAME, a CLIPModel in shards from the hub")
def _hub_shards(quick: Any, plain: Any, name: str, folder: Path, patch: pytest.MonkeyPatch) -> ClipTeacher:
    repository = "owner/clip-tiny"
    transformers_twin(quick, True).save_pretrained(folder / "t", max_shard_size="50KB")
    hub_cache(folder / "t", repository, folder / "cache", patch)
    snapshot = next(folder.glob("cache/*/snapshots/*"))
    shards = snapshot.rename(folder / "hub")
    snapshot.mkdir()

    def download(repository: str, allow_patterns: list[str]) -> str:
        for file in (file for pattern in allow_patterns for file in shards.glob(pattern)):
            shutil.copy(file, snapshot)
        return str(snapshot)

    patch.setattr("epmvg.distill.clip_checkpoints.snapshot_download", download)
    assert len(list(shards.glob("model-*.safetensors"))) > 1 and not is_local(repository, None)
    teacher = ClipTeacher(repository)
    assert is_local(repository, None)
    next(snapshot.glob("model-*.safetensors")).unlink()
    assert not is_local(repository, None)
    return teacher


@form("CLIPModel folder")
def _clip_model(quick: Any, plain: Any, name: str, folder: Path, patch: pytest.MonkeyPatch) -> ClipTeacher:
    transformers_twin(quick, True).save_pretrained(folder / "t")
    return ClipTeacher(folder / "t")


@pytest.mark.parametrize("kind", FORMS)
def test_every_form_embeds_as_transformers_does(
    kind: str, architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick, plain = published(True), published(False)
    teacher = FORMS[kind](quick, plain, architecture, tmp_path, monkeypatch)
    is_quick = not kind.startswith("GELU")
    twin = transformers_twin(quick if is_quick else plain, is_quick)
    seen, read = expected(twin, teacher, clip_tokens())
    check(teacher, seen, read)
    assert teacher.description()["activation"] == ("QuickGELU" if is_quick else "GELU")
    other = transformers_twin(quick, not is_quick)  # the measure tells the activations apart
    for wrong, right in zip(expected(other, teacher, clip_tokens()), (seen, read), strict=True):
        assert F.cosine_similarity(wrong, right).max() < ENOUGH


def own_tokenizer(folder: Path) -> None:
    """A tokenizer of ten words, end and padding, that no CLIP has."""
    words = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", "a", "dog", "red", "the", "on"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def siglip(folder: Path) -> SiglipModel:
    text = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision: dict[str, Any] = text | {"image_size": 32, "patch_size": 8}
    text |= {"vocab_size": 12, "max_position_embeddings": 16, "projection_size": 64}
    model: SiglipModel = spread(SiglipModel(SiglipConfig(text_config=text, vision_config=vision)))
    model.save_pretrained(folder)
    return model


def test_a_siglip_folder_pads_to_its_full_length_without_a_mask(tmp_path: Path) -> None:
    model = siglip(tmp_path)
    own_tokenizer(tmp_path)
    teacher = ClipTeacher(tmp_path)
    tokens = torch.zeros(4, 16, dtype=torch.long)
    for row, ids in enumerate(([3, 4, 7, 6, 2], [6, 5, 2], [2, 2, 2, 2, 2, 2, 2, 2, 2, 2], [2] * 16)):
        tokens[row, : len(ids)] = torch.tensor(ids)
    words = PHRASES[2].replace("'", " ' ").replace(",", " , ").replace("!", " ! ").split()
    tokens[2] = 0
    tokens[2, : len(words)] = 2
    seen, read = expected(model, teacher, tokens)
    check(teacher, seen, read)
    assert teacher.preprocess.resize_mode == "squash" and teacher.preprocess.mean == (0.5, 0.5, 0.5)


def test_open_clip_siglip_folder_has_its_own_tokenizer(tmp_path: Path) -> None:
    """Against open_clip's own way to open a folder."""
    text: dict[str, Any] = {
        "context_length": 16,
        "vocab_size": 12,
        "width": 64,
        "heads": 2,
        "layers": 2,
        "no_causal_mask": True,
    }
    text |= {"hf_tokenizer_name": "timm/ViT-B-16-SigLIP", "pool_type": "last", "tokenizer_kwargs": {"clean": "lower"}}
    config: dict[str, Any] = {"embed_dim": 48, "custom_text": True, "vision_cfg": TINY["vision_cfg"], "text_cfg": text}
    config["init_logit_bias"] = -10
    squash = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": squash}))
    model = spread(open_clip.CustomTextCLIP(**{k: v for k, v in config.items() if k != "custom_text"}))
    safetensors.torch.save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    with pytest.raises(InputError, match=r"tokenizer timm/ViT-B-16-SigLIP.*Copy its files"):
        ClipTeacher(tmp_path)
    own_tokenizer(tmp_path)
    teacher = ClipTeacher(tmp_path)
    reference = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(PHRASES)
    assert tokens[0].tolist() == [3, 4, 7, 6, 2] + [0] * 11
    with torch.no_grad():
        check(teacher, reference.encode_image(images() * 2 - 1), reference.encode_text(tokens))
    assert teacher.preprocess.resize_mode == "squash"


def test_timm_encoder_is_opened_by_tag_as_open_clip_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As MobileCLIP and EVA are: a timm image tower, preprocessing of its tag."""
    vision = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear", "image_size": 160}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "timm-tiny", TINY | {"vision_cfg": vision})
    tag = open_clip.get_pretrained_cfg("MobileCLIP-S1", "datacompdr")
    monkeypatch.setitem(pretrained._PRETRAINED, "timm-tiny", {"datacompdr": tag})
    model = spread(open_clip.create_model("timm-tiny"))
    torch.save(model.state_dict(), tmp_path / "w.pt")
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda cfg, cache_dir=None: str(tmp_path / "w.pt"))
    teacher = ClipTeacher("timm-tiny", "datacompdr")
    reference = open_clip.create_model("timm-tiny", "datacompdr").eval()
    assert teacher.preprocess.mean == (0, 0, 0) and teacher.preprocess.interpolation == "bilinear"
    large = F.interpolate(images(), 160)
    with torch.no_grad():
        assert F.cosine_similarity(teacher.image(large), reference.encode_image(large)).min() >= ENOUGH
        assert F.cosine_similarity(teacher.text(PHRASES), reference.encode_text(clip_tokens())).min() >= ENOUGH


def test_patches_of_a_clip_model_are_those_of_open_clip(tmp_path: Path) -> None:
    transformers_twin(published(True), True).save_pretrained(tmp_path / "hf")
    here = ClipTeacher(tmp_path / "hf")
    there = ClipTeacher(write_folder(tmp_path / "oc", published(True), "open_clip_model.safetensors", True))
    here.mean, here.std = there.mean, there.std
    torch.testing.assert_close(here.tokens(images()), there.tokens(images()), atol=1e-4, rtol=1e-3)
    assert here.grid == there.grid == (4, 4)


def test_teacher_without_weights_is_rejected_unless_random(architecture: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(TINY))
    with pytest.raises(InputError, match=r"ViT-tiny has no weights. .*openai, laion, a weights file or random"):
        ClipTeacher(architecture)
    with pytest.raises(InputError, match=r"c\.json has no weights.*random"):
        ClipTeacher(tmp_path / "c.json")
    assert ClipTeacher(architecture, "random").about["form"] == "random weights"
    assert ClipTeacher(tmp_path / "c.json", "random").width == 48


def test_contradicting_activations_are_rejected_with_both_named(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "w.pt"
    torch.save(published(True).state_dict(), file)
    archive(published(True), tmp_path / "openai.pt")
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda cfg, cache_dir=None: str(file))
    laion = open_clip.get_pretrained_cfg("ViT-B-32", "laion2b_s34b_b79k")
    with pytest.raises(InputError, match=r"does not state its activation.*ViT-tiny-quickgelu .*ViT-tiny with"):
        ClipTeacher(architecture, file)
    for name, weights, stated in (
        (architecture, "openai", False),
        (architecture, "laion", True),
        (f"{architecture}-quickgelu", str(file), False),
        (architecture, str(tmp_path / "openai.pt"), False),
    ):
        with pytest.raises(InputError, match=r"quick_gelu=(true|false), but distill\.quick_gelu=(true|false)"):
            ClipTeacher(name, weights, quick_gelu=stated)
    with pytest.raises(InputError, match=r"has no weights 'laion'. Give one of openai"):
        ClipTeacher(f"{architecture}-quickgelu", "laion")
    monkeypatch.setitem(pretrained._PRETRAINED, "ViT-tiny-quickgelu", {"laion": laion})
    with pytest.raises(InputError, match=r"ViT-tiny-quickgelu has quick_gelu=true, the weights 'laion'.*false"):
        ClipTeacher(f"{architecture}-quickgelu", "laion")
    (tmp_path / "c.json").write_text(json.dumps(TINY))
    with pytest.raises(InputError, match=r"c\.json has quick_gelu=false, but .*openai\.pt contains OpenAI's weights"):
        ClipTeacher(tmp_path / "c.json", tmp_path / "openai.pt")


def test_preprocessing_of_a_file_is_that_of_its_architecture_s_tags(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "w.pt"
    torch.save(published(True).state_dict(), file)
    sig = open_clip.get_pretrained_cfg("ViT-B-16-SigLIP", "webli")
    name = f"{architecture}-quickgelu"
    monkeypatch.setitem(pretrained._PRETRAINED, name, {"webli": sig})
    assert ClipTeacher(name, file).preprocess.resize_mode == "squash"
    monkeypatch.setitem(pretrained._PRETRAINED, name, {"webli": sig, "openai": {"mean": (0.1, 0.2, 0.3)}})
    with pytest.raises(InputError, match=r"does not state its image preprocessing.*preprocess_cfg"):
        ClipTeacher(name, file)


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("was-run"),)


def test_code_of_files_is_not_run(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle
    import zipfile

    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": published(True).state_dict(), "args": Evil()}, "plain.pt")
    archive(published(True), Path("good.pt"))
    with zipfile.ZipFile("good.pt") as good, zipfile.ZipFile("evil.pt", "w") as evil:
        for name in good.namelist():
            evil.writestr(name, pickle.dumps(Evil()) if name.endswith("/data.pkl") else good.read(name))
    for file, words in (("plain.pt", "Python objects"), ("evil.pt", r"refers to pathlib")):
        with pytest.raises(InputError, match=words):
            ClipTeacher(f"{architecture}-quickgelu", file)
    assert not Path("was-run").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "not a weights file|cannot be read"),
        (b"", "cannot be read|not a weights file"),
        (b"PK\x03\x04torn", "cannot be read|not a weights file"),
    ],
)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_files_without_weights_are_named(
    architecture: str, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name} .*({words})") as refused:
        ClipTeacher(f"{architecture}-quickgelu", tmp_path / name)
    assert "\n" not in str(refused.value) and "weights_only" not in str(refused.value)


def test_unsupported_forms_name_an_alternative(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    torch.save(published(True).state_dict(), tmp_path / "sd.pt")
    torch.save({k: v for k, v in published(True).state_dict().items() if "resblocks.1" not in k}, tmp_path / "less.pt")
    safetensors.torch.save_file({"vision_model.post_layernorm.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    other = tmp_path / "bert"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    torn = tmp_path / "torn"
    torn.mkdir()
    CLIPConfig().save_pretrained(torn)
    (torn / "model.safetensors").write_bytes(b"torn")
    lacking = tmp_path / "lacking"
    transformers_twin(published(True), True).save_pretrained(lacking)
    whole = safetensors.torch.load_file(lacking / "model.safetensors")
    del whole["visual_projection.weight"]
    safetensors.torch.save_file(whole, lacking / "model.safetensors", {"format": "pt"})
    wordless = tmp_path / "siglip"
    siglip(wordless)
    words = tmp_path / "words.json"
    words.write_text(json.dumps(TINY | {"text_cfg": TINY["text_cfg"] | {"vocab_size": 32_000}}))
    quick = f"{architecture}-quickgelu"
    for name, weights, said in (
        (tmp_path / "sd.pt", None, r"does not state its architecture.*distill\.pretrained"),
        (quick, tmp_path / "less.pt", r"not of the architecture of ViT-tiny-quickgelu: .*resblocks\.1"),
        (quick, tmp_path / "model.safetensors", r"Hugging Face model's weights.*folder with its config\.json"),
        (quick, "/nope/epoch_3.pt", r"/nope/epoch_3\.pt does not exist"),
        (bare, None, r"no weights.*Copy open_clip_model\.safetensors"),
        (other, None, "type 'bert'"),
        (wordless, None, "has no tokenizer"),
        (torn, None, "torn cannot be opened"),
        (lacking, None, r"lack visual_projection\.weight"),
        (words, "random", "vocabulary of 32000"),
        (bare, "openai", r"cannot be its weights. Set distill\.pretrained=null"),
        ("hf-hub:owner/name", None, r"no folder owner/name.*could not be downloaded"),
        ("owner/name", None, r"no folder owner/name.*could not be downloaded"),
        ("local-dir:/nope", None, "no file, folder or open_clip model '/nope'"),
    ):
        with pytest.raises(InputError, match=said) as refused:
            ClipTeacher(name, weights)
        assert "\n" not in str(refused.value)


def test_every_registered_tag_has_an_activation() -> None:
    """Each tag either states an activation that its architecture can take, or is refused with both named."""
    from epmvg.distill.clip_checkpoints import select_activation

    refused = []
    for name, tag in open_clip.list_pretrained():
        settings = open_clip.get_pretrained_cfg(name, tag)
        try:
            built, required = (bool(part.get("quick_gelu")) for part in (open_clip.get_model_config(name), settings))
            quick = select_activation(name, tag, built, required, None)
        except InputError:
            refused.append(name)
        else:
            assert quick == bool(settings.get("quick_gelu"))
    assert set(refused) == {"roberta-ViT-B-32"}
