"""Names that libraries give to the weights of published networks -> those of their authors; and networks not ours.

Two things are more than names: transformers keeps queries, keys and values apart, and mmdetection orders the channels
of merged patches as `torch.nn.Unfold` does.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from epmvg.core.types import InputError

# Patterns in a published name and their replacements; all of a library's are applied, in this order.
_TRANSFORMERS = [
    (r"^resnet\.|^(?:detr\.)?model\.(?=backbone|encoder|decoder|input|query)|^detr\.", ""),
    (r"^backbone\.(?:conv_encoder\.)?model\.", "backbone.0.body."),
    (r"embedder\.embedder\.convolution\.", "conv1."),
    (r"embedder\.embedder\.normalization\.", "bn1."),
    *((rf"encoder\.stages\.{stage}\.layers\.", f"layer{stage + 1}.") for stage in range(4)),
    *((rf"\.layer\.{layer}\.convolution\.", f".conv{layer + 1}.") for layer in range(3)),
    *((rf"\.layer\.{layer}\.normalization\.", f".bn{layer + 1}.") for layer in range(3)),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    (r"^classifier\.1\.", "fc."),
    (r"^(encoder|decoder)\.", r"transformer.\1."),
    (r"\.o_proj\.", ".out_proj."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.final_layer_norm\.", ".norm2."),
    (r"\.(?:mlp\.)?fc([12])\.", r".linear\1."),
    (r"^input_projection\.", "input_proj."),
    (r"^query_position_embeddings\.", "query_embed."),
    (r"^class_labels_classifier\.", "class_embed."),
    (r"^bbox_predictor\.", "bbox_embed."),
]
_MMDETECTION = [
    (r"(^|\.)stages\.(\d)\.", r"\1layers.\2."),
    (r"\.attn\.w_msa\.", ".attn."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    (r"patch_embed\.projection\.", "patch_embed.proj."),
]
_TORCHVISION = [
    (r"^features\.0\.0\.", "patch_embed.proj."),
    (r"^features\.0\.2\.", "patch_embed.norm."),
    *((rf"^features\.{2 * stage + 1}\.", f"layers.{stage}.blocks.") for stage in range(4)),
    *((rf"^features\.{2 * stage + 2}\.", f"layers.{stage}.downsample.") for stage in range(3)),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
]
LAYOUTS: dict[str, list[tuple[str, str]]] = {
    r"encoder\.layers\.0\.self_attn\.q_proj\.|embedder\.embedder\.convolution\.": _TRANSFORMERS,
    r"\.attn\.w_msa\.": _MMDETECTION,  # versions 2 and 3; the authors' own fork of version 2 has their names
    r"^features\.1\.0\.attn\.qkv\.": _TORCHVISION,
    r"^layers_0\.": [(r"^layers_(\d)\.", r"layers.\1.")],  # timm with features_only
}
"""A pattern that some name of a library's file matches -> the renames for it."""

# Names that only this network has; the first that matches counts. Read in the definition named beside it.
OTHER_NETWORKS = {
    "MDETR": r"transformer\.text_encoder\.",  # ashkamath/mdetr, models/transformer.py
    "Dynamic MDETR": r"^(offset_generators|update_content_queries)\.",  # MCG-NJU/Dynamic-MDETR, models/dynamic_mdetr_*
    "CLIP-VG": r"^(clip\.visual|image_encoder_clip_vg)\.",  # linhuixiao/CLIP-VG, models/clip_vg.py
    "OneRef or another BEiT-3": r"^beit3\.",  # linhuixiao/OneRef, models/OneRef_model.py
    "Grounding DINO": r"encoder\.(fusion_layers\.\d|layers\.\d\.fusion_layer)\.",  # its authors', transformers'
    "GLIP": r"(^|\.)language_backbone\.",  # microsoft/GLIP, modeling/detector/generalized_vl_rcnn.py; mmdetection
    "TransVG++": r"\.lang_modulation_pre_blocks\.",  # djiajunustc/TransVG, models/visual_branch_prompt_fusion.py
    "SeqTR": r"^(lan|vis)_enc\.",  # seanzhuh/SeqTR, models/det_seg/one_stage.py
    "VLTVG": r"^trans_(en|de)coder\.",  # yangli18/VLTVG, models/VLTVG.py
    "Conditional DETR": r"\.[cs]a_qcontent_proj\.",  # transformers, conversion_mapping.py
    "Deformable DETR": r"\.sampling_offsets\.",  # transformers, models/deformable_detr
}


def reject_other_networks(published: dict[str, Tensor], file: str) -> None:
    """Raise InputError with the name of a known network that is not ours."""
    for network, pattern in OTHER_NETWORKS.items():
        if any(re.search(pattern, name) for name in published):
            raise InputError(
                f"{file} is {network}, another network. Convert DETR, Swin, ImageNet, TransVG or QRNet weights, "
                "or use its predictions with epmvg score."
            )


def to_authors_layout(published: dict[str, Tensor], file: str) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """Return tensors by the names of a network's authors; and by the same names, the published ones they came from."""
    found = (LAYOUTS[marker] for marker in LAYOUTS if any(re.search(marker, name) for name in published))
    renames = next(found, [])
    state: dict[str, Tensor] = {}
    sources: dict[str, list[str]] = {}
    for name, tensor in published.items():
        own = name
        for pattern, replacement in renames:
            own = re.sub(pattern, replacement, own)
        state[own], sources[own] = tensor, [name]
    try:
        for name in [name for name in state if renames is _MMDETECTION and ".downsample." in name]:
            # from (channel, row, column) to Swin's (column, row, channel)
            state[name] = state[name].unflatten(-1, (-1, 2, 2)).transpose(-3, -1).flatten(-3)
        for query in [name for name in state if ".self_attn.q_proj." in name]:
            names = [query.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
            stacked = query.replace(".q_proj.", ".in_proj_")  # as torch.nn.MultiheadAttention has them
            state[stacked] = torch.cat([state.pop(name) for name in names])
            sources[stacked] = [name for each in names for name in sources.pop(each)]
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{file} is not complete: {str(error).splitlines()[0]}. Download it again.") from error
    return state, sources
