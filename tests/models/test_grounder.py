"""The grounder: phrases do not see each other, padding is nothing, images are encoded once, a batch can be learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from epmvg.core.boxes import paired_iou, to_xyxy
from epmvg.core.geometry import Letterbox
from epmvg.core.types import GroundingOutput, InputError
from epmvg.distill.losses import GroundingLoss
from epmvg.inference.predictor import Predictor
from epmvg.models import presets
from epmvg.models.dense_head import mean_box, median_box
from epmvg.models.factory import build, create_model, load, measure, save
from epmvg.models.grounder import Grounder
from epmvg.models.iou_head import raw_confidence
from epmvg.models.presets import PRESETS, preset
from epmvg.models.query_modulation import QueryGate
from epmvg.models.text_cache import TextFeatureCache
from epmvg.models.visual_encoder import downsample_mask
from reference.activations import LiveTensors

PHRASES = ["the red square", "a cat", "the man on the left of the blue car", "dog"]


def inputs(model: Grounder, images: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    side = model.image_size
    image = torch.rand(images, 3, side, side, generator=generator)
    image_mask = torch.zeros(images, side, side, dtype=torch.bool)
    image_mask[0, : side // 4] = True
    image_mask[0, -side // 4 :] = True
    tokens, token_mask = model.tokenize(PHRASES)
    return image, image_mask, tokens, token_mask, torch.tensor([0, 1, 0, 1])


def close(a: GroundingOutput, b: GroundingOutput, rows: slice | Tensor = slice(None)) -> None:
    torch.testing.assert_close(a.box[rows], b.box, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(a.visual[rows], b.visual, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(a.text[rows], b.text, atol=1e-5, rtol=1e-4)


BEYOND: dict[str, Any] = {
    "dense_head": True,
    "similarity": True,
    "normalize": True,
    "vls": "mean",
    "position": "sine",
}
STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "paper": ("tiny-resnet", {}),
    "beyond": ("tiny-resnet", BEYOND),
    "swin": ("tiny-swin", {"visual_encoder": {"gates": "off"}}),
    "query-aware": ("tiny-swin", {}),
    "query-aware beyond": ("tiny-swin", BEYOND | {"visual_encoder": {"strides": [8], "pool": "content"}}),
}


@pytest.fixture(params=list(STUDENTS))
def model(request: pytest.FixtureRequest) -> Grounder:
    torch.manual_seed(0)
    name, numbers = STUDENTS[request.param]
    made = create_model(name, **numbers).eval()
    for part, parameter in made.named_parameters():
        if part.endswith(".V"):  # starts at 0, where no gate hears its phrase yet
            torch.nn.init.normal_(parameter, std=0.3)
    return made


@torch.no_grad()
def test_phrases_asked_together_are_phrases_asked_alone(model: Grounder) -> None:
    image, image_mask, tokens, token_mask, image_index = inputs(model)
    together = model(image, image_mask, tokens, token_mask, image_index)
    for i in range(len(PHRASES)):
        own = image_index[i : i + 1]
        alone = model(image[own], image_mask[own], tokens[i : i + 1], token_mask[i : i + 1])
        close(together, alone, slice(i, i + 1))


@torch.no_grad()
def test_attention_is_the_attention_that_was_used(model: Grounder) -> None:
    """Shares of 1, nothing on padding, and mixing the values by them gives what the last layer gave [REG]."""
    seen: list[tuple[Tensor, ...]] = []
    layer: Any = model.fusion.layers[-1].self_attn
    hook = layer.register_forward_hook(lambda module, given, answer: seen.append((*given, answer)))
    image, image_mask, tokens, token_mask, image_index = inputs(model)
    output = model(image, image_mask, tokens, token_mask, image_index, output_output_output_attention=True)
    hook.remove()
    close(output, model(image, image_mask, tokens, token_mask, image_index))
    assert output.attention is not None
    torch.testing.assert_close(output.attention.sum(1), torch.ones(len(PHRASES)))
    nothing = torch.cat([level.flatten(1) for level in model.visual_encoder.token_masks(image_mask)], 1)[image_index]
    places = nothing.shape[1]
    assert output.attention.shape == (len(PHRASES), 1 + places + tokens.shape[1])
    assert (output.attention[:, 1 : 1 + places][nothing] == 0).all()
    assert (output.attention[:, 1 + places :][token_mask] == 0).all()

    ((x, position, hide, answer),) = seen
    shares = layer.first_row(x, position, hide)  # [P, H, T]
    width = x.shape[-1]
    value = torch.nn.functional.linear(x, layer.in_proj_weight[2 * width :], layer.in_proj_bias[2 * width :])
    mixed = torch.einsum("pht,pthd->phd", shares, value.unflatten(-1, (layer.heads, -1))).flatten(1)
    torch.testing.assert_close(layer.out_proj(mixed), answer[:, 0], atol=1e-5, rtol=1e-4)
    expected = shares.mean(1)
    kept = output.attention[output.attention > 0].sort().values
    torch.testing.assert_close(kept, expected[expected > 0].sort().values)


@torch.no_grad()
def test_without_owner_each_phrase_asks_its_own_image(model: Grounder) -> None:
    image, image_mask, tokens, token_mask, image_index = inputs(model)
    close(
        model(image, image_mask, tokens, token_mask, image_index),
        model(image[image_index], image_mask[image_index], tokens, token_mask),
    )


@torch.no_grad()
def test_what_lies_under_padding_changes_nothing(model: Grounder) -> None:
    image, image_mask, tokens, token_mask, image_index = inputs(model)
    noisy = torch.where(image_mask[:, None], torch.rand_like(image), image)
    close(
        model(image, image_mask, tokens, token_mask, image_index),
        model(noisy, image_mask, tokens, token_mask, image_index),
    )


@torch.no_grad()
def test_padded_words_change_nothing(model: Grounder) -> None:
    image, image_mask, tokens, token_mask, image_index = inputs(model)
    wide = torch.cat([tokens, torch.full((4, 4), 2003)], 1)
    wide_pad = torch.cat([token_mask, torch.ones(4, 4, dtype=torch.bool)], 1)
    close(
        model(image, image_mask, tokens, token_mask, image_index), model(image, image_mask, wide, wide_pad, image_index)
    )


@torch.no_grad()
def test_stored_answers_are_the_answers(model: Grounder) -> None:
    image, image_mask, tokens, token_mask, image_index = inputs(model)
    features, states = model.visual_encoder.backbone_features(image, image_mask), model.text_encoder(tokens, token_mask)
    stored = model(image, image_mask, tokens, token_mask, image_index, image_features=features, text_features=states)
    close(model(image, image_mask, tokens, token_mask, image_index), stored)


def test_checkpointed_layers_give_the_same_gradients(model: Grounder) -> None:
    """Dropout included: a layer that is computed again draws what it drew before."""
    given, gradients = inputs(model), []
    for checkpointed in (False, True):
        model.train().set_grad_checkpointing(checkpointed)
        torch.manual_seed(3)
        model.zero_grad()
        GroundingLoss()(model(*given), torch.full((len(PHRASES), 4), 0.4)).total.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_checkpointed_blocks_keep_less_of_a_swin() -> None:
    """A block keeps only its input; the rest is what BERT, the neck and the fusion keep."""
    model = create_model("tiny-swin").train()
    given, kept = inputs(model), []
    for checkpointed in (False, True):
        model.set_grad_checkpointing(checkpointed)
        with LiveTensors([*model.parameters(), *model.buffers(), *given]) as live:
            box = model(*given).box
        kept.append(live.megabytes())
        del box
    assert kept[1] < 0.7 * kept[0]


@torch.no_grad()
def test_maps_lie_on_content_only() -> None:
    model = create_model("tiny-resnet", dense_head=True, similarity=True).eval()
    image, image_mask, tokens, token_mask, image_index = inputs(model)
    output = model(image, image_mask, tokens, token_mask, image_index)
    assert output.heatmap is not None and output.similarity is not None
    (token_pad_of_image,) = model.visual_encoder.token_masks(image_mask)
    token_content = ~token_pad_of_image.flatten(1)[image_index]
    assert torch.equal(output.heatmap.isfinite(), token_content)
    assert torch.equal(output.similarity.isfinite(), token_content)


def test_a_batch_can_be_learned(model: Grounder) -> None:
    """Without dropout, whose noise no small batch averages out; each processor's rounding leads another way there."""
    batch = inputs(model)
    target = torch.tensor([[0.3, 0.4, 0.2, 0.2], [0.7, 0.7, 0.3, 0.2], [0.5, 0.6, 0.5, 0.1], [0.2, 0.8, 0.2, 0.3]])
    loss_of = GroundingLoss(box="l1", box_weight=5, giou_weight=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    overlap = 0.0
    for _ in range(500):
        output = model(*batch)
        overlap = paired_iou(to_xyxy(output.box), to_xyxy(target)).mean().item()
        if overlap > 0.75:
            break
        optimizer.zero_grad()
        loss_of(output, target).total.backward()
        optimizer.step()
    assert overlap > 0.75


def test_every_trainable_parameter_learns(model: Grounder) -> None:
    """Nothing is carried that no gradient reaches: several processes then need no search for unused parameters."""
    output = model.train()(*inputs(model))
    target = torch.full((4, 4), 0.4)
    loss = GroundingLoss()(output, target).total + output.visual.sum() + output.text.sum()
    loss.backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


def test_a_saved_model_answers_the_same(model: Grounder, tmp_path: Path) -> None:
    save(model, tmp_path)
    again = load(tmp_path)
    with torch.no_grad():
        close(model(*inputs(model)), again(*inputs(again)))
    assert again.settings == model.settings


@pytest.mark.parametrize("damage", ["model.yaml", "model.safetensors", "tokenizer", "torn weights", "other weights"])
def test_a_damaged_folder_is_named(tiny: Grounder, tmp_path: Path, damage: str) -> None:
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
def test_presets_build_with_the_right_number_of_places(name: str) -> None:
    numbers = preset(name)
    if numbers["text_encoder"]["width"] > 700:
        numbers = preset(name, text_encoder={"layers": 1, "width": 96, "dim_feedforward": 96}, image_size=64)
    model = build(numbers).eval()
    image, image_mask, tokens, token_mask, image_index = inputs(model)
    with torch.no_grad():
        output = model(image, image_mask, tokens, token_mask, image_index)
    one_map = len(model.visual_encoder.strides) == 1
    assert output.grid == ((model.image_size // model.visual_encoder.strides[0],) * 2 if one_map else None)
    assert output.box.shape == (4, 4) and ((output.box > -1) & (output.box < 2)).all()


def test_unknown_names_are_answered_with_a_guess() -> None:
    with pytest.raises(InputError, match="did you mean 'mini'"):
        create_model("mimi")
    with pytest.raises(InputError, match=r"model\.vls=last is not valid: input should be 'first' or 'mean'"):
        create_model("tiny-resnet", vls="last")
    with pytest.raises(InputError, match="did you mean 'image_size'"):
        create_model("tiny-resnet", image_siz=3)
    with pytest.raises(InputError, match=r"model tiny-resnet\.fusion has no setting 'laiers'"):
        create_model("tiny-resnet", fusion={"laiers": 3})


def test_remembered_phrases_are_the_encoder_s_answers() -> None:
    model = create_model("tiny-resnet", text_encoder={"frozen": ["all"]}).eval()
    memory = TextFeatureCache(model.text_encoder, max_phrases=3)
    tokens, token_mask = model.tokenize(PHRASES)
    for order in ([0, 1, 2, 3], [3, 1], [2, 2, 0], [0]):
        direct = model.text_encoder(tokens[order], token_mask[order]).masked_fill(token_mask[order][..., None], 0)
        torch.testing.assert_close(memory(tokens[order], token_mask[order]), direct, atol=2e-3, rtol=2e-3)
        assert len(memory) <= 3


def test_the_median_vote_is_deaf_to_a_few_far_votes() -> None:
    near, far = torch.tensor([0.3, 0.4, 0.2, 0.2]), torch.tensor([0.9, 0.9, 0.1, 0.1])
    token_boxes = torch.stack([near] * 7 + [far] * 3)[None]
    where = torch.zeros(1, 10)
    torch.testing.assert_close(median_box(where, token_boxes)[0], near)
    assert (mean_box(where, token_boxes)[0] - near).abs().max() > 0.1
    shuffled = torch.randperm(10)
    torch.testing.assert_close(median_box(where, token_boxes[:, shuffled])[0], near)
    padded = torch.cat([where, torch.full((1, 5), -torch.inf)], 1)
    torch.testing.assert_close(median_box(padded, torch.cat([token_boxes, torch.zeros(1, 5, 4)], 1))[0], near)


@torch.no_grad()
def test_a_query_aware_branch_hears_its_phrase() -> None:
    torch.manual_seed(0)
    model = create_model("tiny-swin").eval()
    image, image_mask = torch.rand(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.bool)
    query, image_index = torch.randn(2, model.text_encoder.width), torch.zeros(2, dtype=torch.int64)
    maps = model.visual_encoder.backbone_features(image, image_mask)
    same = model.visual_encoder.visual_tokens(maps, image_mask, query, image_index)
    assert torch.equal(same[0], same[1])  # V = 0: every gate is a half
    for name, parameter in model.visual_encoder.named_parameters():
        if name.endswith(".V"):
            torch.nn.init.normal_(parameter)
    differ = model.visual_encoder.visual_tokens(maps, image_mask, query, image_index)
    assert (differ[0] - differ[1]).abs().max() > 1e-3


def test_only_the_repaired_channel_gate_learns_its_first_layer() -> None:
    """The published start (V = 0 in both layers) passes the first layer no gradient, ever."""
    for start, learns in (("zero_init", False), ("normal_init", True)):
        torch.manual_seed(0)
        gate = QueryGate(8, 128, start)  # type: ignore[arg-type]
        maps, query, image_index = torch.randn(2, 4, 4, 128), torch.randn(3, 8), torch.tensor([0, 1, 1])
        optimizer = torch.optim.SGD(gate.parameters(), lr=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            gate(maps, query, image_index).square().sum().backward()
            optimizer.step()
        gradient = gate.squeeze.V.grad
        assert gradient is not None and bool(gradient.abs().max() > 0) == learns


@torch.no_grad()
def test_gates_can_pool_content_only() -> None:
    """Published QRNet pools over the canvas, padding included; with a pad the gates do not see what lies there."""
    torch.manual_seed(0)
    gate = QueryGate(8, 32)
    for parameter in gate.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    maps, query, image_index = torch.randn(1, 4, 4, 32), torch.randn(1, 8), torch.tensor([0])
    image_mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    image_mask[:, 2:] = True
    other = torch.where(image_mask[..., None], torch.randn_like(maps), maps)
    content = ~image_mask
    assert torch.equal(
        gate(maps, query, image_index, image_mask)[content], gate(other, query, image_index, image_mask)[content]
    )
    assert not torch.allclose(gate(maps, query, image_index)[content], gate(other, query, image_index)[content])


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_listed_sizes_are_true(name: str) -> None:
    listed = json.loads((Path(presets.__file__).with_name("sizes.json")).read_text())[name]
    with torch.device("meta"):
        parameters = sum(p.numel() for p in create_model(name).parameters())
    assert listed["parameters"] == parameters
    if parameters < 50_000_000:
        assert measure(create_model(name)) == listed


def image_size(size: tuple[int, int], side: int) -> tuple[Tensor, Tensor]:
    """An image of this size on its canvas: image [1, 3, S, S], pad [1, S, S]."""
    letterbox = Letterbox.fit(*size, side)
    image, image_mask = letterbox.pad(letterbox.resize(Image.new("RGB", size, (200, 30, 90))))
    return torch.from_numpy(image)[None], torch.from_numpy(image_mask)[None]


@pytest.mark.parametrize("size", [(2000, 10), (10, 2000), (2000, 40), (1, 500), (64, 64)])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tiny-resnet", {}),
        ("tiny-resnet", BEYOND | {"iou_head": True}),
        ("tiny-swin", {"visual_encoder": {"pool": "content"}}),
        ("tiny-swin", BEYOND | {"iou_head": True, "visual_encoder": {"strides": [16]}}),
    ],
)
def test_any_image_gives_finite_boxes_and_gradients(name: str, changes: dict[str, Any], size: tuple[int, int]) -> None:
    """However thin an image is, some token holds content; beside another image as alone."""
    model = create_model(name, **changes)
    image, image_mask = (
        torch.cat(part) for part in zip(*(image_size(each, model.image_size) for each in (size, (80, 60))), strict=True)
    )
    tokens, hidden = model.tokenize(["a dog", "the cup"])
    image_index = torch.tensor([0, 1])
    output = model.train()(image, image_mask, tokens, hidden, image_index)
    output.box.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        both = model.eval()(image, image_mask, tokens, hidden, image_index)
        alone = model(image[:1], image_mask[:1], tokens[:1], hidden[:1])
    assert output.box.isfinite().all() and both.box.isfinite().all() and raw_confidence(both).isfinite().all()
    torch.testing.assert_close(both.box[:1], alone.box)
    torch.testing.assert_close(raw_confidence(both)[:1], raw_confidence(alone))


def test_padding_of_tokens_is_the_published_rule_wherever_that_leaves_a_token() -> None:
    """The pixel at a token's corner decides, for all letterboxed images but strips between the corners."""
    for width, height in [(640, 480), (333, 500), (500, 500), (640, 90)]:
        _, image_mask = image_size((width, height), 256)
        for stride in (16, 32, 64):
            if not image_mask[:, ::stride, ::stride].all():
                assert torch.equal(downsample_mask(image_mask, stride), image_mask[:, ::stride, ::stride])
    strip = torch.ones(2, 64, 64, dtype=torch.bool)
    strip[0, 20:23, 5:60] = False  # between the corners of rows 16 and 32; of the second image there is nothing
    content = ~downsample_mask(strip, 16)
    assert content[0].nonzero().tolist() == [[1, 0], [1, 1], [1, 2], [1, 3]]
    assert content[1].nonzero().tolist() == [[0, 0]]


@pytest.mark.parametrize("name", ["tiny-resnet", "tiny-swin"])
def test_loading_leaves_the_caller_s_defaults_and_is_not_moved_by_them(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save(create_model(name, **({"dense_head": True, "similarity": True} if name == "tiny-resnet" else {})), tmp_path)
    picture, phrases = np.full((40, 60, 3), 90, np.uint8), ["the red square", "dog"]
    expected = Predictor(tmp_path, device="cpu")(picture, phrases)
    state = torch.get_rng_state()
    try:
        for dtype, device in ((torch.float64, "cpu"), (torch.float32, "meta")):
            torch.set_default_dtype(dtype)
            torch.set_default_device(device)
            ground = Predictor(tmp_path, device="cpu")
            for one, other in zip(ground(picture, phrases), expected, strict=True):
                assert one.box == pytest.approx(other.box, abs=0.011) and one.score == pytest.approx(
                    other.score, abs=1e-5
                )
            assert ground.maps("attention", picture, "dog")[0].shape == (40, 60)
            assert torch.get_default_dtype() == dtype and torch.get_default_device().type == device
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert torch.equal(torch.get_rng_state(), state)
