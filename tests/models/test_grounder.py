"""The grounder: phrases are independent, padding has no effect, images are encoded once, a batch can be overfitted."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from grounders import EXTENSIONS, MODELS, PHRASES, assert_close, create, letterboxed, random_inputs
from torch import Tensor

from epmvg.core.boxes import paired_iou, to_xyxy
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
    wide_mask = torch.cat([token_mask, torch.ones(4, 4, dtype=torch.bool)], 1)
    assert_close(
        model(image, image_mask, tokens, token_mask, image_index),
        model(image, image_mask, wide, wide_mask, image_index),
    )


@torch.no_grad()
def test_cached_features_give_the_same_output(model: Grounder) -> None:
    image, image_mask, tokens, token_mask, image_index = random_inputs(model)
    cached = {
        "image_features": model.visual_encoder.backbone_features(image, image_mask),
        "text_features": model.text_encoder(tokens, token_mask),
    }
    assert_close(
        model(image, image_mask, tokens, token_mask, image_index),
        model(image, image_mask, tokens, token_mask, image_index, **cached),
    )


def test_gradient_checkpointing_gives_the_same_gradients(model: Grounder) -> None:
    """With dropout: a layer that is computed again recomputes the same dropout mask."""
    inputs, gradients = random_inputs(model), []
    for checkpointed in (False, True):
        model.train().set_grad_checkpointing(checkpointed)
        torch.manual_seed(3)
        model.zero_grad()
        GroundingLoss()(model(*inputs), torch.full((len(PHRASES), 4), 0.4)).total.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@torch.no_grad()
def test_output_attention_is_that_of_the_last_layer(model: Grounder) -> None:
    """Weights sum to 1, are 0 on padding, and the values averaged by them are the last layer's output for [REG]."""
    calls: list[tuple[Tensor, ...]] = []
    layer: Any = model.fusion.layers[-1].self_attn
    hook = layer.register_forward_hook(lambda module, inputs, output: calls.append((*inputs, output)))
    image, image_mask, tokens, token_mask, image_index = random_inputs(model)
    output = model(image, image_mask, tokens, token_mask, image_index, output_attention=True)
    hook.remove()
    assert_close(output, model(image, image_mask, tokens, token_mask, image_index))
    assert output.attention is not None
    torch.testing.assert_close(output.attention.sum(1), torch.ones(len(PHRASES)))
    padding = torch.cat([level.flatten(1) for level in model.visual_encoder.token_masks(image_mask)], 1)[image_index]
    num_tokens = padding.shape[1]
    assert output.attention.shape == (len(PHRASES), 1 + num_tokens + tokens.shape[1])
    assert (output.attention[:, 1 : 1 + num_tokens][padding] == 0).all()
    assert (output.attention[:, 1 + num_tokens :][token_mask] == 0).all()

    ((x, position, mask, attended),) = calls
    weights = layer.first_token_weights(x, position, mask)  # [P, H, T]
    width = x.shape[-1]
    value = torch.nn.functional.linear(x, layer.in_proj_weight[2 * width :], layer.in_proj_bias[2 * width :])
    averaged = torch.einsum("pht,pthd->phd", weights, value.unflatten(-1, (layer.heads, -1))).flatten(1)
    torch.testing.assert_close(layer.out_proj(averaged), attended[:, 0], atol=1e-5, rtol=1e-4)
    expected = weights.mean(1)
    positive = output.attention[output.attention > 0].sort().values
    torch.testing.assert_close(positive, expected[expected > 0].sort().values)


def test_a_batch_can_be_overfitted(model: Grounder) -> None:
    """Without dropout, whose noise a small batch does not average out; rounding differs between CPUs."""
    batch = random_inputs(model)
    target = torch.tensor([[0.3, 0.4, 0.2, 0.2], [0.7, 0.7, 0.3, 0.2], [0.5, 0.6, 0.5, 0.1], [0.2, 0.8, 0.2, 0.3]])
    loss_of = GroundingLoss(box="l1", box_weight=5, giou_weight=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
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
    """No unused parameters, as DDP requires."""
    output = model.train()(*random_inputs(model))
    target = torch.full((4, 4), 0.4)
    loss = GroundingLoss()(output, target).total + output.visual.sum() + output.text.sum()
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("size", [(2000, 10), (10, 2000), (2000, 40), (1, 500), (64, 64)])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tiny-resnet", {}),
        ("tiny-resnet", EXTENSIONS | {"iou_head": True}),
        ("tiny-swin", {}),
        ("tiny-swin", EXTENSIONS | {"iou_head": True, "visual_encoder": {"strides": [16]}}),
    ],
)
def test_any_image_gives_finite_boxes_and_gradients(name: str, changes: dict[str, Any], size: tuple[int, int]) -> None:
    """However thin an image is, some token is unpadded; predictions are the same alone and in a batch."""
    model = create_model(name, **changes)
    image, image_mask = (
        torch.cat(part)
        for part in zip(*(letterboxed(each, model.image_size) for each in (size, (80, 60))), strict=True)
    )
    tokens, token_mask = model.tokenize(["a dog", "the cup"])
    image_index = torch.tensor([0, 1])
    output = model.train()(image, image_mask, tokens, token_mask, image_index)
    output.box.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        both = model.eval()(image, image_mask, tokens, token_mask, image_index)
        alone = model(image[:1], image_mask[:1], tokens[:1], token_mask[:1])
    assert output.box.isfinite().all() and both.box.isfinite().all() and raw_confidence(both).isfinite().all()
    torch.testing.assert_close(both.box[:1], alone.box)
    torch.testing.assert_close(raw_confidence(both)[:1], raw_confidence(alone))


def test_new_transformers_are_drawn_as_published() -> None:
    """Xavier (sec. 4.2) with the packed projections as one matrix, as in TransVG's code."""
    model = create_model("tiny-resnet")
    matrices = [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if name.startswith(("visual_encoder.encoder.", "fusion.")) and parameter.dim() == 2
    ]
    assert len(matrices) == 4 * 3
    for name, parameter in matrices:
        bound = math.sqrt(6 / sum(parameter.shape))
        assert 0.95 * bound < parameter.abs().max().item() <= bound, name
