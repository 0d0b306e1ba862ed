"""MGCA's `vit_base.ckpt` and `resnet_50.ckpt`, written by Lightning 1.5.

Its BERT has six blocks, no token types, and gives every token position 0, as its code does by a slip: so the weights
were trained, and so they are read. Two layers for attention between words and regions are in the file and are never
called.

Source: released code, `mgca_module.py` and `backbones/`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import Tensor

from cleft.config import ImageTowerConfig, LossConfig, MgcaConfig, Settings
from cleft.models.importing.keys import IMAGE, RESNET, TEXT, VENDORED_BERT, VIT, Section, norm_head
from cleft.models.importing.layout import (
    Facts,
    Layout,
    Weights,
    cropped_images,
    is_vit,
    norm_head_options,
    width_of,
    without_types,
)
from cleft.models.importing.sizes import bert_tower, resnet_config, vit_config


def towers_of_mgca(method: Literal["mgca", "convirt"], weights: Weights, size: int) -> Settings:
    """Towers and heads as MGCA's repository builds them, for its own method and for the baselines beside it."""
    vit = is_vit(weights)
    return Settings(
        method=method,
        images=cropped_images(size),
        image=ImageTowerConfig(
            model=None,
            scratch=vit_config(weights) if vit else resnet_config(weights),
            pooling="cls" if vit else "mean",
            resize=None if vit else size * 299 // 224,
        ),
        text=replace(bert_tower(weights, most_tokens=112), pooling="cls", positions="zero"),
        loss=LossConfig(**norm_head_options(weights), train_temperature=False),
    )


def _settings(weights: Weights, size: int, _facts: Facts) -> Settings:
    mgca = MgcaConfig(prototypes=width_of(weights, "prototypes"), padding="released", word_weights="shifted")
    return replace(towers_of_mgca("mgca", weights, size), mgca=mgca)


def _complete(weights: Weights, size: int) -> Weights:
    return {name: _of_pointwise(name, tensor) for name, tensor in without_types(weights, size).items()}


def _of_pointwise(name: str, tensor: Tensor) -> Tensor:
    """Local heads are convolutions of one tap: layers with an axis too many."""
    local = name.startswith(("region_projection.", "word_projection."))
    return tensor[..., 0] if local and tensor.ndim == 3 and tensor.shape[2] == 1 else tensor


MGCA = Layout(
    method="mgca",
    title="MGCA",
    marks=("prototype_layer.weight", "img_encoder_q.model.", "text_encoder_q.model.embeddings."),
    sections=(
        Section("img_encoder_q.model.", IMAGE, {**VIT, **RESNET}),
        norm_head("img_encoder_q.global_embed.", "image_projection."),
        norm_head("img_encoder_q.local_embed.", "region_projection."),
        Section("text_encoder_q.model.", TEXT, VENDORED_BERT),
        norm_head("text_encoder_q.global_embed.", "text_projection."),
        norm_head("text_encoder_q.local_embed.", "word_projection."),
        Section("", "", {r"prototype_layer\.weight": "prototypes", r"(patch|word)_local_atten_layer\..*": None}),
    ),
    settings=_settings,
    complete=_complete,
    rule="release-2",
)
