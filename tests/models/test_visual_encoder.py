"""Which visual tokens are padding, and which parameters are frozen."""

from __future__ import annotations

import torch
from grounders import letterboxed

from epmvg.models.factory import create_model
from epmvg.models.visual_encoder import downsample_mask


def test_the_corner_pixel_decides_which_tokens_are_padding() -> None:
    """The pixel at a token's corner decides, for all letterboxed images but strips between the corners."""
    for width, height in [(640, 480), (333, 500), (500, 500), (640, 90)]:
        _, image_mask = letterboxed((width, height), 256)
        for stride in (16, 32, 64):
            if not image_mask[:, ::stride, ::stride].all():
                assert torch.equal(downsample_mask(image_mask, stride), image_mask[:, ::stride, ::stride])
    strip = torch.ones(2, 64, 64, dtype=torch.bool)
    strip[0, 20:23, 5:60] = False  # between the corners of rows 16 and 32; of the second image there is nothing
    content = ~downsample_mask(strip, 16)
    assert content[0].nonzero().tolist() == [[1, 0], [1, 1], [1, 2], [1, 3]]
    assert content[1].nonzero().tolist() == [[0, 0]]


def trained(network: torch.nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def test_frozen_as_a_string_is_one_name() -> None:
    as_list = create_model(
        "tiny-resnet", visual_encoder={"frozen": ["layer1"]}, text_encoder={"frozen": ["embeddings"]}
    )
    as_text = create_model("tiny-resnet", visual_encoder={"frozen": "layer1"}, text_encoder={"frozen": "embeddings"})
    assert trained(as_text) == trained(as_list)
    stopped = trained(create_model("tiny-resnet")) - trained(as_text)
    assert stopped and all(".layer1." in name or ".embeddings." in name for name in stopped)
    assert not trained(create_model("tiny-swin", visual_encoder={"frozen": "all"}).visual_encoder.backbone)
