"""Small random grounders of the transformers library, saved as published ones are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

from epmvg.core.tokenizer import bert_vocabulary

hf: Any = transformers


def _bert() -> Any:
    return hf.BertTokenizer(vocab=bert_vocabulary(), do_lower_case=True)


def _clip(length: int) -> Any:
    """Return a CLIP tokenizer whose pieces are bytes; no id of a start token is 0, which OWL-ViT takes for padding."""
    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return hf.CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=length)


def _swin() -> Any:
    return hf.SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 2],
        window_size=2,
        out_indices=[2, 3, 4],
    )


_SMALL: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def _clip_text(tokenizer: Any, width: int, length: int) -> dict[str, Any]:
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return {"vocab_size": len(tokenizer), "hidden_size": width, "max_position_embeddings": length, **_SMALL, **ids}


def _grounding_dino(config: Any, model: Any, **options: Any) -> tuple[Any, Any]:
    tokenizer = _bert()
    text = hf.BertConfig(vocab_size=len(tokenizer), hidden_size=32, max_position_embeddings=64, **_SMALL)
    options |= {f"{part}_{key}": value for part in ("encoder", "decoder") for key, value in _LAYER.items()}
    settings = config(
        backbone_config=_swin(),
        text_config=text,
        num_queries=12,
        encoder_layers=1,
        decoder_layers=2,
        d_model=32,
        max_text_len=24,
        **options,
    )
    image_processor = hf.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    return model(settings), hf.GroundingDinoProcessor(image_processor, tokenizer)


_LAYER = {"ffn_dim": 64, "attention_heads": 2}


def _omdet_turbo() -> tuple[Any, Any]:
    tokenizer = _clip(77)
    settings = hf.OmDetTurboConfig(
        backbone_config=_swin(),
        text_config=hf.CLIPTextConfig(**_clip_text(tokenizer, 48, 77), projection_dim=48),
        image_size=64,
        num_queries=12,
        encoder_hidden_dim=32,
        decoder_hidden_dim=32,
        vision_features_channels=[32, 32, 32],
        encoder_in_channels=[32, 64, 128],
        encoder_dim_feedforward=64,
        encoder_attention_heads=2,
        encoder_layers=1,
        decoder_num_heads=2,
        decoder_num_layers=1,
        decoder_dim_feedforward=64,
        text_projection_in_dim=48,
        text_projection_out_dim=48,
        class_embed_dim=48,
        task_encoder_hidden_dim=64,
        disable_custom_kernels=True,
        apply_layernorm_after_vision_backbone=False,
    )
    image_processor = hf.DetrImageProcessor(size={"height": 64, "width": 64}, do_pad=False)
    return hf.OmDetTurboForObjectDetection(settings), hf.OmDetTurboProcessor(image_processor, tokenizer)


def _owl(config: Any, model: Any, image_processor: Any, processor: Any) -> tuple[Any, Any]:
    tokenizer = _clip(16)
    vision = {"hidden_size": 32, "image_size": 64, "patch_size": 16, **_SMALL}
    settings = config(text_config=_clip_text(tokenizer, 32, 16), vision_config=vision, projection_dim=32)
    return model(settings), processor(image_processor(size={"height": 64, "width": 64}), tokenizer)


DETECTORS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "grounding-dino": lambda: _grounding_dino(
        hf.GroundingDinoConfig, hf.GroundingDinoForObjectDetection, disable_custom_kernels=True
    ),
    "mm-grounding-dino": lambda: _grounding_dino(hf.MMGroundingDinoConfig, hf.MMGroundingDinoForObjectDetection),
    "omdet-turbo": _omdet_turbo,
    "owlvit": lambda: _owl(hf.OwlViTConfig, hf.OwlViTForObjectDetection, hf.OwlViTImageProcessor, hf.OwlViTProcessor),
    "owlv2": lambda: _owl(hf.Owlv2Config, hf.Owlv2ForObjectDetection, hf.Owlv2ImageProcessor, hf.Owlv2Processor),
}


def save_detector(kind: str, folder: Path, *, seed: int = 0) -> Path:
    """Save a detector of a type whose answers differ between phrases and queries, and return its folder."""
    torch.manual_seed(seed)
    model, processor = DETECTORS[kind]()
    with torch.no_grad():  # heads begin at zero, where all phrases tie
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            elif parameter.numel() > 1 and not parameter.any():
                parameter.normal_(std=0.1)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
