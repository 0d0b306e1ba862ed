"""MedCLIP's `pytorch_model.bin`, by itself or in the zip it is published in.

A text is the mean of all positions of layers 1, 2 and 12, padding counted in, so that it depends on the texts it is
read with: so the weights were trained, and so they are read. The file holds BERT's pooler, which is never read. A
head of texts with a bias, which earlier versions had, is taken too.

Source: released code, `medclip/modeling_medclip.py`.
"""

from __future__ import annotations

import math
from dataclasses import replace

from cleft.config import ImageTowerConfig, LossConfig, Settings
from cleft.models.importing.keys import BERT, IMAGE, NO_POOLER, RESNET, SWIN, TEXT, Section
from cleft.models.importing.layout import (
    MIMIC_MEAN,
    MIMIC_STD,
    Facts,
    Layout,
    Weights,
    cropped_images,
    scale_of,
    width_of,
)
from cleft.models.importing.sizes import bert_tower, resnet_config, swin_config


def _settings(weights: Weights, size: int, _facts: Facts) -> Settings:
    swin = f"{IMAGE}embeddings.patch_embeddings.projection.weight" in weights
    return Settings(
        method="medclip",
        images=replace(cropped_images(size), mean=MIMIC_MEAN, std=MIMIC_STD),
        image=ImageTowerConfig(
            model=None,
            scratch=swin_config(weights, size) if swin else resnet_config(weights),
            pooling="pooler",
        ),
        text=replace(bert_tower(weights, most_tokens=77), layers=(1, 2, -1), pooling="mean-padded"),
        loss=LossConfig(
            projection="linear" if "text_projection.bias" in weights else "linear-no-bias",
            embed_dim=width_of(weights, "image_projection.weight"),
            temperature=math.exp(-scale_of(weights)),
        ),
    )


def _complete(weights: Weights, _size: int) -> Weights:
    if "text_projection.bias" not in weights or "image_projection.bias" in weights:
        return weights
    return {**weights, "image_projection.bias": weights["text_projection.bias"].new_zeros(width_of(weights, _HEAD))}


_HEAD = "image_projection.weight"

MEDCLIP = Layout(
    method="medclip",
    title="MedCLIP",
    marks=("vision_model.model.", "text_model.model."),
    sections=(
        Section("vision_model.model.fc.", "image_projection.", {"weight": r"\g<0>"}),
        Section("vision_model.model.", IMAGE, {**SWIN, **RESNET}),
        Section("vision_model.projection_head.", "image_projection.", {"weight": r"\g<0>"}),
        Section("text_model.model.", TEXT, {**BERT, **NO_POOLER}),
        Section("text_model.projection_head.", "text_projection.", {"weight|bias": r"\g<0>"}),
        Section("", "", {"logit_scale": "logit_scale"}),
    ),
    settings=_settings,
    complete=_complete,
)
