"""The grounder: visual and text encoder, [REG], fusion and box head (figure 2, eq. 1-4).

`Grounder.query` is the paper's computation. Each extension (docs/design.md) is one `if` in it: token-phrase
similarity, the dense head and the IoU head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from epmvg.core.calibration import Calibration
from epmvg.core.tokenizer import PhraseTokenizer
from epmvg.core.types import GroundingOutput, InputError
from epmvg.models.dense_head import DenseHead, TokenPhraseSimilarity, mean_box, median_box
from epmvg.models.iou_head import IouHead, iou_features
from epmvg.models.presets import Position, Vls
from epmvg.models.swin import SwinEncoder
from epmvg.models.text_encoder import TextEncoder
from epmvg.models.transformer import (
    MLP,
    TransformerEncoder,
    count_unpadded,
    gather_tokens,
    mean_unpadded,
    sine_position,
    unpadded_indices,
)
from epmvg.models.visual_encoder import BaseVisualEncoder


@dataclass(slots=True)
class EncodedImages:
    """Phrase-independent image features, to be queried with any number of phrases."""

    features: Tensor  # visual tokens [I, N, C], or intermediate features [I, ...] for a query-aware encoder
    image_mask: Tensor  # bool [I, S, S]
    num_unpadded: int | None = None  # as `Grounder.num_unpadded`, where it is known


@dataclass(slots=True)
class VisualTokens:
    """The visual tokens that are fused with phrases: n <= N of each image, since most padding is dropped."""

    features: Tensor  # [I, n, C], or [P, n, C] of a query-aware encoder
    feature_index: Tensor  # int64 [P], the features of each phrase
    position: Tensor  # [P, n, D]
    mask: Tensor  # bool [P, n], True at padding
    index: Tensor  # int64 [P, n], which of the N tokens these are
    grids: list[tuple[int, int]]  # (rows, columns) of each feature level

    def scatter_to_grid(self, values: Tensor, fill: float) -> Tensor:
        """Return values [P, n, ...] of these tokens as [P, N, ...], with `fill` for the dropped ones."""
        count = sum(rows * columns for rows, columns in self.grids)
        index = self.index if values.dim() == 2 else self.index[..., None].expand_as(values)
        return values.new_full((values.shape[0], count, *values.shape[2:]), fill).scatter(1, index, values)

    def centers(self) -> Tensor:
        """Return the centers (x, y) of the tokens of a single level in 0..1 of the input, [P, n, 2]."""
        ((rows, columns),) = self.grids
        x = (self.index % columns + 0.5) / columns
        y = (self.index.div(columns, rounding_mode="floor") + 0.5) / rows
        return torch.stack([x, y], -1)


class Grounder(nn.Module):
    """Predict the box of a phrase in an image.

    Args:
        visual_encoder, text_encoder: the two encoders.
        tokenizer: of the text encoder; saved with the weights.
        settings: the settings that this model was built from; saved with the weights.
        image_size: S, side of the square input in pixels.
        max_length: L, most word pieces of a phrase, [CLS] and [SEP] included.
        width, layers, heads, dim_feedforward, dropout: of the fusion encoder; D = width.
        vls: [VLS] is the "first" fused visual token (eq. 2), or the "mean" of the unpadded ones.
        position: of visual tokens in the fusion: one "learned" embedding per token (the paper), or "sine", which fits
            any image size.
        pre_fusion_norm: LayerNorm after both projections; small training budgets need it.
        similarity: add the cosine of each visual token with the phrase to the token.
        dense_head: predict a heatmap over visual tokens and a box from each of them.
        iou_head: predict the IoU of the predicted box; no gradient passes into the other parts.

    Attributes:
        calibration: from raw confidence to probability, or None; `load` reads it.
        domain: what the model was trained to recognize, where its model card states it; `load` reads it.

    Raises:
        InputError: `dense_head` with several feature levels of visual tokens.
    """

    def __init__(
        self,
        visual_encoder: BaseVisualEncoder,
        text_encoder: TextEncoder,
        *,
        tokenizer: PreTrainedTokenizerBase,
        settings: dict[str, Any],
        image_size: int,
        max_length: int,
        width: int,
        layers: int,
        heads: int,
        dim_feedforward: int,
        dropout: float,
        vls: Vls = "first",
        position: Position = "learned",
        pre_fusion_norm: bool = False,
        similarity: bool = False,
        dense_head: bool = False,
        iou_head: bool = False,
    ) -> None:
        super().__init__()
        if dense_head and len(visual_encoder.strides) > 1:
            raise InputError("model.dense_head=true needs one level of visual tokens. Give visual_encoder one stride.")
        self.tokenizer, self.settings = tokenizer, settings
        self.image_size, self.max_length, self.width, self.vls = image_size, max_length, width, vls
        self.visual_encoder = visual_encoder
        self.text_encoder = text_encoder
        # visu_proj, text_proj, reg_token and vl_pos_embed are TransVG's parameter names.
        self.visu_proj = _projection(visual_encoder.width, width, pre_fusion_norm)
        self.text_proj = _projection(text_encoder.width, width, pre_fusion_norm)
        self.reg_token = nn.Embedding(1, width)
        self.sine_position = position == "sine"
        num_visual = 0 if self.sine_position else visual_encoder.num_tokens(image_size)
        # Rows: [REG], text, visual, as in TransVG's weights; tokens are [REG], visual, text as in eq. 1.
        self.vl_pos_embed = nn.Embedding(1 + max_length + num_visual, width)
        self.fusion = TransformerEncoder(layers, width, heads, dim_feedforward, dropout)
        self.box_head = MLP(width, width, 4)
        self.similarity = TokenPhraseSimilarity(visual_encoder.width, text_encoder.width, width) if similarity else None
        self.dense_head = DenseHead(width) if dense_head else None
        self.iou_head = self.new_iou_head() if iou_head else None
        self.calibration: Calibration | None = None
        self.domain: str | None = None

    def new_iou_head(self) -> IouHead:
        """Create an IoU head for this model, leaving the RNG state unchanged."""
        with torch.random.fork_rng(devices=[]):
            return IouHead(self.width, dense_head=self.dense_head is not None, similarity=self.similarity is not None)

    def phrase_tokenizer(self) -> PhraseTokenizer:
        """Return the tokenizer of this model with its maximum length."""
        return PhraseTokenizer.of(self.tokenizer, self.max_length)

    def tokenize(self, phrases: list[str]) -> tuple[Tensor, Tensor]:
        """Return tokens int64 [P, L'] and token_mask bool [P, L'] of P phrases, L' <= L; longer ones are cut."""
        tokens = self.phrase_tokenizer()(phrases)
        return torch.from_numpy(tokens.ids), torch.from_numpy(tokens.padding)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute fusion and visual encoder again in the backward pass of training, layer by layer, to save memory."""
        for module in self.modules():
            if isinstance(module, TransformerEncoder):
                module.grad_checkpointing = enable
            elif isinstance(module, SwinEncoder):
                module.set_grad_checkpointing(enable)

    def forward(
        self,
        images: Tensor,
        image_mask: Tensor,
        tokens: Tensor,
        token_mask: Tensor,
        image_index: Tensor | None = None,
        *,
        image_features: Tensor | None = None,
        text_features: Tensor | None = None,
        negative_pairs: Tensor | None = None,
        num_unpadded: int | None = None,
        output_attention: bool = False,
        output_negative_similarity: bool = False,
    ) -> GroundingOutput:
        """Ground P phrases in I images.

        Args:
            images: float [I, 3, S, S] in 0..1.
            image_mask: bool [I, S, S], True at padding.
            tokens: int64 [P, L].
            token_mask: bool [P, L], True at padding.
            image_index: int64 [P], the image of each phrase; phrase i belongs to image i by default.
            image_features: cached `visual_encoder.backbone_features` [I, ...] of a frozen backbone.
            text_features: cached text features [P, L, C] of a frozen text encoder.
            negative_pairs: int64 [2, A], image and phrase of negative pairs, for the IoU head
                (`GroundingOutput.negative_iou_logits`).
            num_unpadded: what `Grounder.num_unpadded` returned for the mask on the host, so that no GPU is waited for.
            output_attention: return the attention weights of [REG] in the last fusion layer, averaged over the heads,
                in eq. 1's order; the fusion is computed a second time.
            output_negative_similarity: return the similarity of the negative pairs too, with gradients.
        """
        if image_index is None:
            image_index = torch.arange(tokens.shape[0], device=tokens.device)
        if text_features is None:
            text_features = self.text_encoder(tokens, token_mask)  # f_l [P, L, C]
        encoded = self.encode_images(images, image_mask, image_features, num_unpadded)  # f_v [I, N, C]
        output = self.query(encoded, text_features, token_mask, image_index, output_attention=output_attention)
        if negative_pairs is not None and self.iou_head is not None:
            features = self._negative_iou_features(encoded, text_features, token_mask, *negative_pairs)
            output.negative_iou_logits = self.iou_head(features)
        if negative_pairs is not None and output_negative_similarity:
            output.negative_similarity = self._negative_similarity(encoded, text_features, token_mask, *negative_pairs)
        return output

    def num_unpadded(self, image_mask: Tensor) -> int:
        """Return the largest number of visual tokens that an image has besides padding, for image_mask [I, S, S]."""
        return count_unpadded(torch.cat([mask.flatten(1) for mask in self.visual_encoder.token_masks(image_mask)], 1))

    def encode_images(
        self, images: Tensor, image_mask: Tensor, features: Tensor | None = None, num_unpadded: int | None = None
    ) -> EncodedImages:
        """Encode images as far as no phrase is needed; arguments as for `forward`, `features` as `image_features`."""
        encoder = self.visual_encoder
        features = encoder.backbone_features(images, image_mask) if features is None else features.float()
        if not encoder.query_aware:
            features = encoder.visual_tokens(features, image_mask, num_unpadded=num_unpadded)
        return EncodedImages(features, image_mask, num_unpadded)

    def query(
        self,
        images: EncodedImages,
        text_features: Tensor,
        token_mask: Tensor,
        image_index: Tensor,
        *,
        output_attention: bool = False,
    ) -> GroundingOutput:
        """Query encoded images with text features [P, L, C]; other arguments as for `forward`."""
        num_phrases, max_len = token_mask.shape
        visual = self._visual_tokens(images, text_features, image_index)  # f_v without most padding
        visual_tokens = self.visu_proj(visual.features).index_select(0, visual.feature_index)  # p_v [P, n, D] (eq. 2)
        similarity = None
        if self.similarity is not None:  # beyond the paper
            similarity = self.similarity(visual.features, text_features, token_mask, visual.feature_index)  # [P, n]
            visual_tokens = visual_tokens + self.similarity.embed_logits(similarity)
            similarity = similarity.float().masked_fill(visual.mask, -math.inf)
        text_tokens = self.text_proj(text_features)  # p_l [P, L, D] (eq. 3)
        reg_token = self.reg_token.weight.expand(num_phrases, 1, -1)  # p_r [P, 1, D]
        x = torch.cat([reg_token, visual_tokens, text_tokens], 1)  # [P, 1 + n + L, D] (eq. 1)
        mask = torch.cat([token_mask.new_zeros(num_phrases, 1), visual.mask, token_mask], 1)
        position = self._positions(visual.position, max_len).to(x.dtype)
        fused = self.fusion(x, position, mask)
        fused_reg, fused_visual, fused_text = fused.split([1, visual_tokens.shape[1], max_len], 1)
        fused_reg = fused_reg[:, 0]
        output = GroundingOutput(
            box=self.box_head(fused_reg).float().sigmoid(),  # [P, 4] (eq. 4)
            # [VLS]; token 0 is never dropped (unpadded_indices).
            visual=fused_visual[:, 0] if self.vls == "first" else mean_unpadded(fused_visual, visual.mask),
            text=fused_text[:, 0],  # [CLS]
            image_index=image_index,
            grid=visual.grids[0] if len(visual.grids) == 1 else None,
        )
        if similarity is not None:
            output.similarity = visual.scatter_to_grid(similarity, -math.inf)
        if self.dense_head is not None:
            heatmap, token_boxes = self.dense_head(fused_visual, fused_reg, visual.centers(), visual.mask, similarity)
            output.reg_box = output.box
            output.box = mean_box(heatmap, token_boxes) if self.training else median_box(heatmap, token_boxes)
            output.heatmap = visual.scatter_to_grid(heatmap, -math.inf)
            output.token_boxes = visual.scatter_to_grid(token_boxes, 0.0)
        if self.iou_head is not None:
            self._predict_iou(output, self.iou_head, visual, fused_reg, fused_visual)
        if output_attention:
            output.attention = self._reg_attention(x, position, mask, visual)
        return output

    def _visual_tokens(self, images: EncodedImages, text_features: Tensor, image_index: Tensor) -> VisualTokens:
        """Return the visual tokens of each phrase's image, without padding that is never attended to."""
        encoder = self.visual_encoder
        grid_masks = encoder.token_masks(images.image_mask)  # [I, H, W] of each level
        mask = torch.cat([level.flatten(1) for level in grid_masks], 1)  # [I, N]
        index = unpadded_indices(mask, images.num_unpadded)  # [I, n]
        position = gather_tokens(self._visual_positions(grid_masks), index)  # [I, n, D]
        if encoder.query_aware:
            features = encoder.visual_tokens(images.features, images.image_mask, text_features[:, 0], image_index)
            features = gather_tokens(features, index[image_index])  # [P, n, C]
            feature_index = torch.arange(image_index.shape[0], device=image_index.device)
        else:
            features = gather_tokens(images.features, index)  # [I, n, C]
            feature_index = image_index
        return VisualTokens(
            features=features,
            feature_index=feature_index,
            position=position.index_select(0, image_index),
            mask=mask.gather(1, index).index_select(0, image_index),
            index=index.index_select(0, image_index),
            grids=[(level.shape[1], level.shape[2]) for level in grid_masks],
        )

    def _visual_positions(self, grid_masks: list[Tensor]) -> Tensor:
        """Return positions of visual tokens in the fusion, [I, N, D], for masks [I, H, W] of each level."""
        if self.sine_position:
            return torch.cat([sine_position(mask, self.width).flatten(1, 2) for mask in grid_masks], 1)
        learned = self.vl_pos_embed.weight[1 + self.max_length :]
        count = sum(mask[0].numel() for mask in grid_masks)
        if len(learned) != count:
            raise ValueError(f"this model has {len(learned)} learned positions, and the images have {count} tokens")
        return learned.expand(grid_masks[0].shape[0], -1, -1)

    def _positions(self, visual: Tensor, length: int) -> Tensor:
        """Return positions of [REG], visual [P, n, D] and text tokens, [P, 1 + n + L, D]."""
        reg, text = self.vl_pos_embed.weight[:1], self.vl_pos_embed.weight[1 : 1 + length]
        return torch.cat([part.expand(visual.shape[0], -1, -1) for part in (reg, visual, text)], 1)

    def _predict_iou(
        self, output: GroundingOutput, head: IouHead, visual: VisualTokens, reg: Tensor, fused: Tensor
    ) -> None:
        """Predict the IoU of the box of inference, without a gradient into the other parts."""
        with torch.no_grad():
            output.iou_box = output.box
            pooled = mean_unpadded(fused, visual.mask)
            if output.heatmap is not None and output.token_boxes is not None:
                if self.training:
                    output.iou_box = median_box(output.heatmap, output.token_boxes)
                weight = output.heatmap.softmax(-1).gather(1, visual.index)  # [P, n]
                pooled = torch.einsum("pn,pnd->pd", weight.to(fused.dtype), fused)
            output.iou_box = output.iou_box.detach()
            output.iou_features = iou_features(output, reg, pooled)
        output.iou_logits = head(output.iou_features)

    @torch.no_grad()
    def _negative_iou_features(
        self, images: EncodedImages, text_features: Tensor, token_mask: Tensor, image_index: Tensor, phrase: Tensor
    ) -> Tensor:
        """Compute IoU-head features [A, F] for negative pairs in eval mode, leaving the RNG state unchanged."""
        was_training = self.training
        self.eval()
        features = self.query(images, text_features[phrase], token_mask[phrase], image_index).iou_features
        self.train(was_training)
        assert features is not None  # called with an IoU head only
        return features

    def _negative_similarity(
        self, images: EncodedImages, text_features: Tensor, token_mask: Tensor, image_index: Tensor, phrase: Tensor
    ) -> Tensor:
        """Compute similarity logits [A, n] for negative pairs, -inf at padding."""
        assert self.similarity is not None
        text_features, token_mask = text_features[phrase], token_mask[phrase]
        visual = self._visual_tokens(images, text_features, image_index)
        similarity: Tensor = self.similarity(visual.features, text_features, token_mask, visual.feature_index)
        return similarity.float().masked_fill(visual.mask, -math.inf)

    def _reg_attention(self, x: Tensor, position: Tensor, mask: Tensor, visual: VisualTokens) -> Tensor:
        """Return the attention weights of [REG] over [REG], N visual and L text tokens, [P, 1 + N + L]."""
        count = visual.mask.shape[1]
        weights = self.fusion.first_token_weights(x, position, mask)  # [P, 1 + n + L]
        on_reg, on_visual, on_text = weights.split([1, count, x.shape[1] - 1 - count], 1)
        return torch.cat([on_reg, visual.scatter_to_grid(on_visual, 0.0), on_text], 1)


def _projection(inputs: int, width: int, norm: bool) -> nn.Module:
    linear = nn.Linear(inputs, width)
    return nn.Sequential(linear, nn.LayerNorm(width)) if norm else linear
