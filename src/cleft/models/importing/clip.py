"""The CLIP of CLEFT's authors, as their code writes it with Lightning.

Images are pooled from two blocks of a masked autoencoder's decoder behind the ViT, whose positions have slipped
frequencies; its BERT has six blocks, no token types, and gives every token position 0. So such weights were trained,
and so they are read. The decoder that paints, the mask token and the local heads are trained beside them and never
used.

Source: released code of CLEFT, `backbones/` and `CLIP`.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

from cleft.config import ImageTowerConfig, LossConfig, Settings
from cleft.models.importing.keys import IMAGE, TEXT, VENDORED_BERT, VIT, Section, norm_head
from cleft.models.importing.layout import (
    Facts,
    Layout,
    Weights,
    cropped_images,
    norm_head_options,
    scale_of,
    without_types,
)
from cleft.models.importing.sizes import bert_tower, vit_config
from cleft.models.official_sizes import blocks_of

_DECODER = "image_tower.decoder."


def _settings(weights: Weights, size: int, _facts: Facts) -> Settings:
    return Settings(
        method="clip",
        images=cropped_images(size),
        image=ImageTowerConfig(
            model=None,
            scratch=vit_config(weights),
            pooling="cls",
            decoder_blocks=blocks_of(weights, re.escape(_DECODER) + r"blocks\.(\d+)\."),
            decoder_positions="slipped",
        ),
        text=replace(bert_tower(weights, most_tokens=64), pooling="cls", positions="zero"),
        loss=LossConfig(**norm_head_options(weights, math.exp(-scale_of(weights)))),
    )


CLIP = Layout(
    method="clip",
    title="the authors' CLIP",
    marks=("img_encoder_q.model.decoder_blocks_feature.", "text_encoder_q.model.embeddings."),
    sections=(
        Section("img_encoder_q.model.", IMAGE, VIT),
        Section(
            "img_encoder_q.model.",
            _DECODER,
            {
                r"decoder_embed\.(weight|bias)": r"embed.\1",
                r"decoder_norm_feat\.(weight|bias)": r"norm.\1",
                r"decoder_blocks_feature\.(\d+)\.(norm[12])\.(weight|bias)": r"blocks.\1.\2.\3",
                r"decoder_blocks_feature\.(\d+)\.attn\.qkv\.(weight|bias)": r"blocks.\1.self_attn.in_proj_\2",
                r"decoder_blocks_feature\.(\d+)\.attn\.proj\.(weight|bias)": r"blocks.\1.self_attn.out_proj.\2",
                r"decoder_blocks_feature\.(\d+)\.mlp\.fc([12])\.(weight|bias)": r"blocks.\1.linear\2.\3",
                r"mask_token|decoder_pos_embed": None,
                r"decoder_(blocks\.\d+|norm|pred)\..*": None,
            },
        ),
        norm_head("img_encoder_q.global_embed.", "image_projection."),
        Section("text_encoder_q.model.", TEXT, VENDORED_BERT),
        norm_head("text_encoder_q.global_embed.", "text_projection."),
        Section("", "", {r"(img|text)_encoder_q\.local_embed\..*": None, "logit_scale": "logit_scale"}),
    ),
    settings=_settings,
    complete=without_types,
)
