"""BiomedCLIP as Microsoft publishes it: a folder of open_clip with weights, `open_clip_config.json` and a tokenizer.

timm's ViT read by its class token, PubMedBERT read by its first token, a layer without bias for images and two with a
GELU between for texts. How each is read stands in `open_clip_config.json` alone, so that another way is refused.

Source: Zhang et al. 2025 (NEJM AI); open_clip, `TimmModel` and `HFTextEncoder`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cleft.config import ImageTowerConfig, LossConfig, Settings
from cleft.errors import CheckpointError
from cleft.models.importing.keys import BERT, IMAGE, NO_POOLER, TEXT, VIT, Section
from cleft.models.importing.layout import (
    Facts,
    Layout,
    Weights,
    number_in,
    part_of,
    scale_of,
    side_in,
    whole_images,
    width_of,
)
from cleft.models.importing.sizes import bert_tower, vit_config

_CONFIG = "open_clip_config.json"


def _settings(weights: Weights, size: int, facts: Facts) -> Settings:
    vision, text = _tower(facts, "vision_cfg"), _tower(facts, "text_cfg")
    _check(vision, "timm_pool", "avg", ("", "token"))
    _check(vision, "timm_proj", "linear", ("linear",))
    _check(text, "hf_pooler_type", "cls_pooler", ("cls_last_hidden_state_pooler",))
    _check(text, "hf_proj_type", "linear", ("mlp",))
    return Settings(
        method="clip",
        images=whole_images(size, part_of(facts[_CONFIG], "preprocess_cfg"), "mean", "std"),
        image=ImageTowerConfig(model=None, scratch=vit_config(weights), pooling="cls", resize=size),
        text=replace(bert_tower(weights, most_tokens=number_in(text, "context_length", 77)), pooling="cls"),
        loss=LossConfig(
            projection="linear-no-bias",
            text_projection="mlp-gelu",
            hidden_width=width_of(weights, "text_projection.0.weight"),
            embed_dim=width_of(weights, "image_projection.weight"),
            temperature=math.exp(-scale_of(weights)),
        ),
    )


def _tower(facts: Facts, name: str) -> dict[str, Any]:
    return part_of(part_of(facts[_CONFIG], "model_cfg"), name)


def _check(said: Mapping[str, Any], name: str, silent: str, read: tuple[str, ...]) -> None:
    """Refuses what open_clip would do otherwise; where the file is silent it does `silent`."""
    value = said.get(name, silent)
    if value not in read:
        raise CheckpointError(f"{_CONFIG} says {name}: {value!r:.40}, and only {' or '.join(map(repr, read))} is read")


BIOMEDCLIP = Layout(
    method="biomedclip",
    title="BiomedCLIP",
    marks=("visual.trunk.", "visual.head.proj.", "text.transformer.embeddings.", "text.proj."),
    sections=(
        Section("visual.trunk.", IMAGE, VIT),
        Section("visual.head.proj.", "image_projection.", {"weight": r"\g<0>"}),
        Section("text.transformer.", TEXT, {**BERT, **NO_POOLER}),
        Section("text.proj.", "text_projection.", {r"[02]\.weight": r"\g<0>"}),
        Section("", "", {"logit_scale": "logit_scale"}),
    ),
    settings=_settings,
    beside=(_CONFIG,),
    side=lambda _weights, facts: side_in(_tower(facts, "vision_cfg")),
    tokenizer="microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
)
