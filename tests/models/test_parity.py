"""Number for number: the published TransVG and QRNet, through our conversion and our network."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from epmvg.config.settings import Recipe
from epmvg.core.boxes import paired_iou, to_xyxy
from epmvg.core.tokenizer import PhraseTokenizer
from epmvg.distill.losses import GroundingLoss
from epmvg.models.convert import RULES, Conversion, convert
from epmvg.models.grounder import Grounder
from epmvg.training.optimizer import parameter_groups

FOLDER = Path(__file__).parents[1] / "parity"
KINDS = {"transvg_r50": "transvg", "qrnet_swin_s": "qrnet"}


def name_seed() -> Any:
    spec = importlib.util.spec_from_file_location("name_seed", FOLDER / "name_seed.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def published(name: str, fill: bool = True) -> dict[str, Tensor]:
    """A checkpoint of the published model, filled by name."""
    shapes = json.loads(gzip.decompress((FOLDER / "published_keys.json.gz").read_bytes()))[name]
    state = {
        key: torch.zeros(shape, dtype=torch.long if key.endswith("_index") else torch.float32)
        for key, shape in shapes.items()
    }
    if fill:
        name_seed().fill(state)
    return state


def references(name: str) -> dict[str, Any]:
    outputs: dict[str, Any] = torch.load(FOLDER / "references.pt", weights_only=True)[name]
    return outputs


@pytest.fixture(scope="module", params=list(KINDS))
def case(request: pytest.FixtureRequest) -> tuple[Conversion, dict[str, Any]]:
    return convert(published(request.param), KINDS[request.param]), references(request.param)


def inputs(model: Grounder, size: int = 2) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
    batch = name_seed().batch(size=size, length=model.max_length, side=model.image_size)
    image = batch["img"] * model.visual_encoder.std + model.visual_encoder.mean  # published images come normalized
    return (image, batch["img_mask"].bool(), batch["word_id"], batch["word_mask"] == 0), batch["target"]


@torch.no_grad()
def test_published_outputs(case: tuple[Conversion, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes within 1e-5, fused tokens within 1e-4 relative; only [REG], [VLS], [CLS] and unpadded tokens are kept."""
    model, expected = case[0].model, case[1]
    fused: list[Tensor] = []
    model.fusion.register_forward_hook(lambda module, inputs, output: fused.append(output))
    batch, _ = inputs(model)
    output = model(*batch)
    torch.testing.assert_close(output.box, expected["boxes"], atol=1e-5, rtol=0)

    rows, published_tokens = expected["rows"], expected["vl_out"].transpose(0, 1)
    image_mask = torch.cat([level.flatten(1) for level in model.visual_encoder.token_masks(batch[1])], 1)
    scale = published_tokens.abs().max()
    compared = 0
    for i in range(2):
        content = (~image_mask[i]).clone()
        content[0] = True
        index = torch.cumsum(content, 0)  # 1-based index of kept tokens; [REG] is 0
        end = fused[-1].shape[1] - model.max_length
        for row, tokens in zip(rows.tolist(), published_tokens[i], strict=True):
            if row == 0:
                own = fused[-1][i, 0]
            elif row <= model.max_length:
                own = fused[-1][i, end + row - 1]
            elif content[row - 1 - model.max_length]:
                own = fused[-1][i, int(index[row - 1 - model.max_length])]
            else:
                continue
            assert (own - tokens).abs().max() < 1e-4 * scale
            compared += 1
    assert compared > 12
    assert torch.equal(output.text, fused[-1][:, end])
    assert torch.equal(output.visual, fused[-1][:, 1])  # [VLS] is the first visual token, padding here


@torch.no_grad()
def test_every_intermediate_output(case: tuple[Conversion, dict[str, Any]], shared: Path) -> None:
    """All reference outputs, where the shared folder has them."""
    model = case[0].model
    name = "transvg_r50" if model.settings["visual_encoder"].get("gates") is None else "qrnet_swin_s"
    expected = torch.load(shared / "parity" / f"{name}.pt", weights_only=True)["outputs"]
    (image, image_mask, tokens, token_mask), _ = inputs(model)
    text_features = model.text_encoder(tokens, token_mask)
    torch.testing.assert_close(text_features, expected["bert_out"], atol=1e-4, rtol=1e-4)
    visual = model.visual_encoder.visual_tokens(
        model.visual_encoder.backbone_features(image, image_mask), image_mask, text_features[:, 0], torch.arange(2)
    )
    scales = getattr(model.visual_encoder, "scale_embed", None)
    if scales is not None:  # published QRNet adds the scale after the encoder, ours in it
        visual = visual - torch.cat([scales.weight[3].expand(400, -1), scales.weight[4].expand(100, -1)])
    wanted = expected["visu_out"].transpose(0, 1)
    padding = torch.cat([level.flatten(1) for level in model.visual_encoder.token_masks(image_mask)], 1)
    assert torch.equal(padding, expected["visu_mask"])
    kept = ~padding
    kept[:, 0] = True  # [VLS]
    torch.testing.assert_close(visual[kept], wanted[kept], atol=1e-4 * wanted.abs().max().item(), rtol=1e-4)


def test_every_parameter_is_accounted_for(case: tuple[Conversion, dict[str, Any]]) -> None:
    conversion = case[0]
    assert conversion.new == []
    own = set(conversion.model.state_dict())
    assert len(conversion.converted) == len(own)
    assert all(conversion.ignored.values())
    learned = {name for name, reason in conversion.ignored.items() if "computed" not in reason}
    assert all("pooler" in name or "rpn_head" in name for name in learned)


def test_published_parameter_groups(case: tuple[Conversion, dict[str, Any]]) -> None:
    """Learning rate and decay of every parameter that both train; frozen ones stay frozen."""
    conversion, expected = case
    model = conversion.model
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    own = {
        names[id(parameter)]: group["lr"]
        for group in parameter_groups(model, Recipe().train)
        for parameter in group["params"]
    }
    theirs = {}
    for group in expected["groups"].values():
        assert group["weight_decay"] == Recipe().train.weight_decay
        for name in group["names"]:
            renamed = our_name(name, "qrnet" if "gates" in model.settings["visual_encoder"] else "transvg")
            if renamed is not None:
                theirs[renamed] = group["lr"]
    assert own == theirs
    frozen = {our_name(name, "transvg") for name in expected["frozen"]}
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == frozen


def our_name(published_name: str, kind: str) -> str | None:
    """Rename by the conversion itself, one parameter at a time."""
    for pattern, ours, _ in RULES[kind]:
        match = re.fullmatch(pattern, published_name)
        if match:
            if ours is None:
                return None
            own = match.expand(ours)
            return re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", own)
    raise AssertionError(published_name)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(KINDS))
def test_published_training_steps(name: str) -> None:
    """Losses and boxes over three AdamW steps at the published learning rates, dropout off.

    AdamW's first steps move a weight by its learning rate however small its gradient, so that rounding grows from step
    to step: QRNet's third boxes differ by 0.003 or 0.025 on one thread or two.
    """
    model, expected = convert(published(name), KINDS[name]).model, references(name)
    optimizer = torch.optim.AdamW(parameter_groups(model, Recipe().train), weight_decay=1e-4)
    batch, target = inputs(model)
    loss_of = GroundingLoss(box="l1")
    for step, boxes, bound in zip(expected["steps"], expected["step_boxes"], (1e-5, 2e-3, 5e-2), strict=True):
        output = model(*batch)
        torch.testing.assert_close(output.box, boxes, atol=bound, rtol=0)
        loss = loss_of(output, target)
        assert loss.terms["l1"].item() == pytest.approx(step["loss_bbox"], abs=bound)
        assert loss.terms["giou"].item() == pytest.approx(step["loss_giou"], abs=bound)
        loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_r101_fits_as_published() -> None:
    conversion = convert(published("transvg_r101", fill=False), "transvg")
    assert conversion.preset == "transvg-r101" and conversion.new == []


def test_published_tokens_and_scores(shared: Path) -> None:
    """Word pieces and metric of the published pipeline; phrases with " ||| " are text here, a crash there."""
    from transformers import BertTokenizer

    cases = torch.load(shared / "parity" / "data_pipeline.pt", weights_only=True)
    vocabulary = {word: number for number, word in enumerate(cases["tokenise"]["vocab"])}
    tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=True)
    for row in cases["tokenise"]["cases"]:
        tokens = PhraseTokenizer.of(tokenizer, row["seq_len"])([row["text"]])
        length = tokens.ids.shape[1]
        assert tokens.ids[0].tolist() == row["ids"][:length]
        assert (~tokens.padding[0]).astype(int).tolist() == row["mask"][:length]
        assert not any(row["mask"][length:])
    table = cases["loss_metric"]
    iou = paired_iou(to_xyxy(table["pred"]).clamp(0, 1), to_xyxy(table["target"]))
    assert int((iou >= 0.5).sum()) == int(table["n_correct"])
