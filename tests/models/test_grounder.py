"""The grounder: phrases are independent, padding has no effect, images are encoded once, a batch can be overfitted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from grounders import BEYOND, MODELS, PHRASES, assert_close, create, random_inputs
from PIL import Image
from torch import Tensor

from epmvg.core.boxes import paired_iou, to_xyxy
from epmvg.core.geometry import Letterbox
from epmvg.distill.losses import GroundingLoss
from epmvg.models.factory import create_model
from epmvg.models.grounder import Grounder
from epmvg.models.iou_head import raw_confidence


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> Grounder:
    return create(request.param)


@torch.no_grad()
def test_phrases_of_a_batch_are_independent(model: Grounder) -> None:
    image, image_mask, tokens, token_mask, image_index = random_inputs(model)
    together = model(image, image_mask, tokens, token_mask, image_index)
    for i in range(len(PHRASES)):
        own = image_index[i : i + 1]
        alone = model(image[own], image_mask[own], tokens[i : i + 1], token_mask[i : i + 1])
        assert_close(together, alone, slice(i, i + 1))


@torch.no_grad()
def test_image_index_defaults_to_one_image_per_phrase(model: Grounder) -> None:
    image, image_mask, tokens, token_mask, image_index = random_inputs(model)
    assert_close(
        model(image, image_mask, tokens, token_mask, image_index),
        model(image[image_index], image_mask[image_index], tokens, token_mask),
    )


@torch.no_grad()
def test_padded_pixels_have_no_effect(model: Grounder) -> None:
    image, image_mask, tokens, token_mask, image_index = random_inputs(model)
    noisy = torch.where(image_mask[:, None], torch.rand_like(image), image)
    assert_close(
        model(image, image_mask, tokens, token_mask, image_index),
        model(noisy, image_mask, tokens, token_mask, image_index),
    )


@torch.no_grad()
def test_padded_tokens_have_no_effect(model: Grounder) -> None:
    image, image_mask, tokens, token_mask, image_index = random_inputs(model)
    wide = torch.cat([tokens, torch.full((4, 4), 2003)], 1)
    wide_pad = torch.cat([token_mask, torch.ones(4, 4, dtype=torch.bool)], 1)
    assert_close(
        model(image, image_mask, tokens, token_mask, image_index), model(image, image_mask, wide, wide_pad, image_index)
    )


@torch.no_grad()
def test_cached_features_give_the_same_output(model: Grounder) -> None:
    image, image_mask, tokens, token_mask, image_index = random_inputs(model)
    features, states = model.visual_encoder.backbone_features(image, image_mask), model.text_encoder(tokens, token_mask)
    stored = model(image, image_mask, tokens, token_mask, image_index, image_features=features, text_features=states)
    assert_close(model(image, image_mask, tokens, token_mask, image_index), stored)


def test_gradient_checkpointing_gives_the_same_gradients(model: Grounder) -> None:
    """Dropout included: a layer that is computed again draws what it drew before."""
    given, gradients = random_inputs(model), []
    for checkpointed in (False, True):
        model.train().set_grad_checkpointing(checkpointed)
        torch.manual_seed(3)
        model.zero_grad()
        GroundingLoss()(model(*given), torch.full((len(PHRASES), 4), 0.4)).total.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@torch.no_grad()
def test_output_attention_is_that_of_the_last_layer(model: Grounder) -> None:
    """Shares of 1, nothing on padding, and mixing the values by them gives what the last layer gave [REG]."""
    seen: list[tuple[Tensor, ...]] = []
    layer: Any = model.fusion.layers[-1].self_attn
    hook = layer.register_forward_hook(lambda module, given, answer: seen.append((*given, answer)))
    image, image_mask, tokens, token_mask, image_index = random_inputs(model)
    output = model(image, image_mask, tokens, token_mask, image_index, output_attention=True)
    hook.remove()
    assert_close(output, model(image, image_mask, tokens, token_mask, image_index))
    assert output.attention is not None
    torch.testing.assert_close(output.attention.sum(1), torch.ones(len(PHRASES)))
    nothing = torch.cat([level.flatten(1) for level in model.visual_encoder.token_masks(image_mask)], 1)[image_index]
    places = nothing.shape[1]
    assert output.attention.shape == (len(PHRASES), 1 + places + tokens.shape[1])
    assert (output.attention[:, 1 : 1 + places][nothing] == 0).all()
    assert (output.attention[:, 1 + places :][token_mask] == 0).all()

    ((x, position, hide, answer),) = seen
    shares = layer.first_token_weights(x, position, hide)  # [P, H, T]
    width = x.shape[-1]
    value = torch.nn.functional.linear(x, layer.in_proj_weight[2 * width :], layer.in_proj_bias[2 * width :])
    mixed = torch.einsum("pht,pthd->phd", shares, value.unflatten(-1, (layer.heads, -1))).flatten(1)
    torch.testing.assert_close(layer.out_proj(mixed), answer[:, 0], atol=1e-5, rtol=1e-4)
    expected = shares.mean(1)
    kept = output.attention[output.attention > 0].sort().values
    torch.testing.assert_close(kept, expected[expected > 0].sort().values)


def test_a_batch_can_be_overfitted(model: Grounder) -> None:
    """Without dropout, whose noise no small batch averages out; each processor's rounding leads another way there."""
    batch = random_inputs(model)
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


def test_every_trainable_parameter_gets_a_gradient(model: Grounder) -> None:
    """Nothing is carried that no gradient reaches: several processes then need no search for unused parameters."""
    output = model.train()(*random_inputs(model))
    target = torch.full((4, 4), 0.4)
    loss = GroundingLoss()(output, target).total + output.visual.sum() + output.text.sum()
    loss.backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


def letterboxed(size: tuple[int, int], side: int) -> tuple[Tensor, Tensor]:
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
        ("tiny-swin", {}),
        ("tiny-swin", BEYOND | {"iou_head": True, "visual_encoder": {"strides": [16]}}),
    ],
)
def test_any_image_gives_finite_boxes_and_gradients(name: str, changes: dict[str, Any], size: tuple[int, int]) -> None:
    """However thin an image is, some token holds content; beside another image as alone."""
    model = create_model(name, **changes)
    image, image_mask = (
        torch.cat(part)
        for part in zip(*(letterboxed(each, model.image_size) for each in (size, (80, 60))), strict=True)
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
