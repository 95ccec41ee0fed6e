"""The grounder: visual and linguistic branches, [REG], fusion and head (eq. 1-4).

Token order is eq. 1's: [REG], visual, text. An image is encoded once and answers all its phrases.
The where-map, the phrase-token similarity, the anchored head and the score head go beyond the paper
(docs/design.md, docs/confidence.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from epmvg.core.calibration import Calibration
from epmvg.core.tokenizer import PhraseTokenizer
from epmvg.core.types import GroundingOutput, InputError
from epmvg.models.dense_head import Similarity, TokenMaps, mean_of_content, mean_vote, median_vote
from epmvg.models.iou_head import ScoreHead, score_evidence
from epmvg.models.text_encoder import LinguisticBranch
from epmvg.models.transformer import MLP, Encoder, content_first, sine_position
from epmvg.models.visual_encoder import SwinBranch, VisualBranch

Vls = Literal["first", "mean"]
Position = Literal["learned", "sine"]


@dataclass(slots=True)
class EncodedImages:
    """Images as far as they can be encoded without a phrase, ready for any number of them."""

    features: Tensor  # visual tokens [I, N, C], or the maps [I, ...] that a query-aware branch starts from
    image_mask: Tensor  # bool [I, S, S]

    def select(self, index: Tensor) -> EncodedImages:
        return EncodedImages(self.features[index], self.image_mask[index])


class Grounder(nn.Module):
    """Find the box of a phrase in an image.

    Args:
        visual, linguistic: the two branches.
        tokenizer: turns phrases into word pieces; travels with the weights.
        settings: the plain numbers this model was built from, kept for saving.
        canvas: S, side of the square input in pixels.
        max_length: L, most word pieces of a phrase, [CLS] and [SEP] included.
        width, layers, heads, hidden, dropout: of the fusion (D, depth, ...).
        vls: [VLS] is the "first" fused visual token (eq. 2), or the "mean" of those that are not padding.
        position: of visual tokens in the fusion: one learned row a place (the paper), or the sine code,
            which works for any canvas.
        normalize: bring visual and text tokens to one scale (LayerNorm) before they meet; small budgets need it.
        similarity: let each visual token know its cosine with the phrase in a shared space.
        anchored: predict a where-map over visual tokens and let each token vote for the box.
        score: predict how well the own box fits, without a say in what the rest learns.

    `calibration` turns raw scores into probabilities, and `domain` says what the model was trained to recognise; `load`
    sets them where the folder states them.

    Raises:
        InputError: `anchored` with several maps of visual tokens.
    """

    def __init__(
        self,
        visual: VisualBranch,
        linguistic: LinguisticBranch,
        *,
        tokenizer: PreTrainedTokenizerBase,
        settings: dict[str, Any],
        image_size: int,
        max_length: int,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        dropout: float,
        vls: Vls = "first",
        position: Position = "learned",
        normalize: bool = False,
        similarity: bool = False,
        anchored: bool = False,
        score: bool = False,
    ) -> None:
        super().__init__()
        self.visual = visual
        self.linguistic = linguistic
        self.tokenizer = tokenizer
        self.settings = settings
        self.image_size = image_size
        self.max_length = max_length
        self.width = width
        self.vls = vls
        self.anchored = anchored
        if anchored and len(visual.strides) > 1:
            raise InputError("anchored=true needs one map of visual tokens: give model.visual one stride.")
        self.visu_proj = _projection(visual.width, width, normalize)
        self.text_proj = _projection(linguistic.width, width, normalize)
        self.reg_token = nn.Embedding(1, width)
        self.sine = position == "sine"
        places = 0 if self.sine else visual.places(image_size)
        self.vl_pos_embed = nn.Embedding(1 + max_length + places, width)  # rows: [REG], text, visual
        self.fusion = Encoder(layers, width, heads, hidden, dropout)
        self.head = MLP(width, width, 4)
        self.similarity = Similarity(visual.width, linguistic.width, width) if similarity else None
        self.where_head = nn.Linear(width, 1) if anchored else None
        self.vote_head = MLP(width, width, 4) if anchored else None
        if self.vote_head is not None:
            nn.init.normal_(cast(nn.Linear, self.vote_head.layers[-1]).weight, std=0.01)  # first votes: one's own place
            nn.init.zeros_(cast(nn.Linear, self.vote_head.layers[-1]).bias)
        self.score_head = self.new_score_head() if score else None
        self.calibration: Calibration | None = None
        self.domain: str | None = None

    def new_score_head(self) -> ScoreHead:
        """Make a fresh score head for this student; the caller's random numbers stay as they were."""
        with torch.random.fork_rng(devices=[]):
            return ScoreHead(self.width, maps=self.anchored, similarity=self.similarity is not None)

    def phrase_tokenizer(self) -> PhraseTokenizer:
        """Return what turns phrases into the word pieces of this model."""
        return PhraseTokenizer.of(self.tokenizer, self.max_length)

    def tokenize(self, phrases: list[str]) -> tuple[Tensor, Tensor]:
        """Turn P phrases into tokens int64 [P, L'] and token_mask bool [P, L'], L' <= L; longer phrases are cut."""
        tokens = PhraseTokenizer.of(self.tokenizer, self.max_length)(phrases)
        return torch.from_numpy(tokens.ids), torch.from_numpy(tokens.padding)

    def checkpoint_layers(self, wanted: bool = True) -> None:
        """Choose whether training computes the layers of fusion and visual encoder, or Swin, twice to save memory."""
        for module in self.modules():
            if isinstance(module, (Encoder, SwinBranch)):
                module.checkpointed = wanted

    def encode_image(self, image: Tensor, image_mask: Tensor, features: Tensor | None = None) -> EncodedImages:
        """Encode image [I, 3, S, S] in 0..1 with pad bool [I, S, S]; `features` is what `visual.maps` answered."""
        maps = self.visual.maps(image, image_mask) if features is None else features.float()  # stored in half precision
        return EncodedImages(maps if self.visual.query_aware else self.visual.tokens(maps, image_mask), image_mask)

    def forward(
        self,
        image: Tensor,
        image_mask: Tensor,
        tokens: Tensor,
        token_mask: Tensor,
        image_index: Tensor | None = None,
        *,
        features: Tensor | None = None,
        states: Tensor | None = None,
        absent: Tensor | None = None,
        attention: bool = False,
    ) -> GroundingOutput:
        """Ground P phrases in I images.

        Args:
            image: float [I, 3, S, S] in 0..1; pad: bool [I, S, S], True where there is no picture.
            tokens: int64 [P, L]; token_mask: bool [P, L].
            owner: int64 [P], the image of each phrase; None means phrase i asks about image i.
            features, states: stored answers of a frozen backbone [I, C, h, w] and a frozen text encoder [P, L, C].
            absent: int64 [2, A], image and phrase of pairs that do not belong together; the score head judges them
                (`Output.absent`), and nothing else hears of them.
            attention: also answer what [REG] attends to in the last fusion layer, the mean of its heads, in eq. 1's
                order: [REG] itself (with a learned [VLS]), N visual and L text tokens. The fusion is computed a
                second time for it.
        """
        if image_index is None:
            image_index = torch.arange(tokens.shape[0], device=tokens.device)
        if states is None:
            states = self.linguistic(tokens, token_mask)
        images = self.encode_image(image, image_mask, features)
        output = self.answer(images, states, token_mask, image_index, attention=attention)
        if absent is not None and self.score_head is not None:
            output.negative_iou_logits = self.score_head(self._evidence_of(images, states, token_mask, *absent))
        return output

    @torch.no_grad()
    def _evidence_of(
        self, images: EncodedImages, states: Tensor, token_mask: Tensor, image: Tensor, phrase: Tensor
    ) -> Tensor:
        """Ask phrases [A] of images [A] as at inference, without drawing a random number."""
        learning = self.training
        self.eval()
        iou_features = self.answer(images, states[phrase], token_mask[phrase], image).iou_features
        self.train(learning)
        assert iou_features is not None
        return iou_features

    def answer(
        self, images: EncodedImages, states: Tensor, token_mask: Tensor, image_index: Tensor, *, attention: bool = False
    ) -> GroundingOutput:
        """Fuse encoded images with text states [P, L, C] and read the boxes; `attention` as for `forward`."""
        pads = self.visual.pads(images.image_mask)  # [I, H, W] each
        image_mask = torch.cat([level.flatten(1) for level in pads], 1)  # [I, N]
        position = self._visual_position(pads)  # [I, N, D]
        keep = content_first(image_mask)  # [I, n]: padding is never attended to, so most of it need not be carried
        branch = images.features
        source = image_index  # where a phrase's visual tokens lie in `branch`
        if self.visual.query_aware:
            branch = self.visual.tokens(branch, images.image_mask, states[:, 0], image_index)  # [P, N, C]
            source = torch.arange(image_index.shape[0], device=image_index.device)
            image_mask, position, keep = image_mask[image_index], position[image_index], keep[image_index]
        kept = keep.index_select(0, source)  # [P, n]
        visual_pad = image_mask.gather(1, keep).index_select(0, source)  # [P, n]
        branch = _take(branch, keep)  # [I, n, C]
        visual = self.visu_proj(branch).index_select(0, source)  # [P, n, D] (eq. 2)
        position = _take(position, keep).index_select(0, source)  # [P, n, D]
        text = self.text_proj(states)  # [P, L, D] (eq. 3)
        similarity = None
        if self.similarity is not None:
            similarity = self.similarity(branch, states, token_mask, source)  # [P, n]
            visual = visual + self.similarity.feed(similarity)

        phrases, length = token_mask.shape
        x = torch.cat([self.reg_token.weight.expand(phrases, 1, -1), visual, text], 1)  # [P, 1 + n + L, D] (eq. 1)
        parts = (self.vl_pos_embed.weight[:1], position, self.vl_pos_embed.weight[1 : 1 + length])
        position = torch.cat([part.expand(phrases, -1, -1) for part in parts], 1).to(x.dtype)
        hide = torch.cat([token_mask.new_zeros(phrases, 1), visual_pad, token_mask], 1)  # [P, 1 + n + L]
        reg, fused, fused_text = self.fusion(x, position, hide).split([1, visual.shape[1], length], 1)
        fused_reg = reg[:, 0]

        places = image_mask.shape[1]
        rows, columns = pads[0].shape[1:]
        reg_box = self.head(fused_reg).float().sigmoid()  # [P, 4] (eq. 4)
        out = GroundingOutput(
            box=reg_box,
            visual=fused[:, 0] if self.vls == "first" else mean_of_content(fused, visual_pad),
            text=fused_text[:, 0],
            image_index=image_index,
            grid=(rows, columns) if len(pads) == 1 else None,
            attention=self._attention(x, position, hide, kept, places) if attention else None,
        )
        where = token_boxes = None
        if similarity is not None:
            similarity = similarity.float().masked_fill(visual_pad, -math.inf)
            out.similarity = _spread(similarity, kept, places)
        if self.where_head is not None and self.vote_head is not None:
            where = self.where_head(fused).squeeze(-1).float()  # [P, n]
            if similarity is not None:
                where = where + similarity
            where = where.masked_fill(visual_pad, -math.inf)
            centre = _centres(keep, rows, columns)[source]  # [P, n, 2]
            token_boxes = self._votes(fused, fused_reg, centre)
            out.box = mean_vote(where, token_boxes) if self.training else median_vote(where, token_boxes)
            out.reg_box = reg_box
            index = kept[..., None].expand(-1, -1, 4)
            out.token_boxes = token_boxes.new_zeros(phrases, places, 4).scatter(1, index, token_boxes)
            out.heatmap = _spread(where, kept, places)
        self._judge(out, fused_reg, fused, visual_pad, TokenMaps(where, token_boxes, similarity))
        return out

    def _judge(self, out: GroundingOutput, reg: Tensor, fused: Tensor, visual_pad: Tensor, maps: TokenMaps) -> None:
        """Let the score head judge the box that inference reads; no gradient passes into the rest."""
        if self.score_head is None:
            return
        out.iou_box = out.box.detach()
        if self.training and maps.where is not None and maps.token_boxes is not None:
            out.iou_box = median_vote(maps.where.detach(), maps.token_boxes.detach())
        out.iou_features = score_evidence(out, out.iou_box, reg, fused, visual_pad, maps)
        out.iou_logits = self.score_head(out.iou_features)

    def _attention(self, x: Tensor, position: Tensor, hide: Tensor, keep: Tensor, places: int) -> Tensor:
        """What [REG] attends to in the last layer over x [P, 1 + n + L, D], with 0 at the N - n tokens left out."""
        count = keep.shape[1]
        shares = self.fusion.attention(x, position, hide)  # [P, 1 + n + L]
        own, seen, read = shares.split([1, count, x.shape[1] - 1 - count], 1)
        return torch.cat([own, _spread(seen, keep, places, 0.0), read], 1)  # [P, 1 + N + L]

    def _votes(self, fused: Tensor, fused_reg: Tensor, centre: Tensor) -> Tensor:
        """Let each visual token guess the box from its own place (centre [P, n, 2]) -> [P, n, 4] cxcywh."""
        assert self.vote_head is not None
        vote = self.vote_head(fused + fused_reg[:, None]).float()
        return torch.cat([centre + vote[..., :2], vote[..., 2:].sigmoid()], -1)

    def _visual_position(self, pads: list[Tensor]) -> Tensor:
        """Positions of visual tokens in the fusion, [I, N, D], of token maps with pad [I, H, W] each."""
        if self.sine:
            return torch.cat([sine_position(image_mask, self.width).flatten(1, 2) for image_mask in pads], 1)
        rows = self.vl_pos_embed.weight[1 + self.max_length :]
        places = sum(image_mask[0].numel() for image_mask in pads)
        if len(rows) != places:
            raise ValueError(f"this model has {len(rows)} learned places, the canvas has {places}")
        return rows.expand(pads[0].shape[0], -1, -1)


def _projection(inputs: int, width: int, normalize: bool) -> nn.Module:
    linear = nn.Linear(inputs, width)
    return nn.Sequential(linear, nn.LayerNorm(width)) if normalize else linear


def _take(tokens: Tensor, index: Tensor) -> Tensor:
    """Gather tokens [I, N, C] at index [I, n] -> [I, n, C]."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def _spread(values: Tensor, index: Tensor, places: int, elsewhere: float = -math.inf) -> Tensor:
    """Put values [P, n] back to their places [P, N]."""
    return values.new_full((values.shape[0], places), elsewhere).scatter(1, index, values)


def _centres(index: Tensor, rows: int, columns: int) -> Tensor:
    """Centres (x, y) in 0..1 of the canvas of tokens [I, n] -> [I, n, 2]."""
    x = (index % columns + 0.5) / columns
    y = (index.div(columns, rounding_mode="floor") + 0.5) / rows
    return torch.stack([x, y], -1)
