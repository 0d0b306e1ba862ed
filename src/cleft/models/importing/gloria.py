"""GLoRIA's `chexpert_resnet50.ckpt` and `chexpert_resnet18.ckpt`, written by Lightning 1.1.

Images of 224 pixels are read at 299. Texts stay in BERT's space: words are sums of the last four layers, a text is
the mean of its words. The file holds BERT's pooler, which is never read, and settings as objects of OmegaConf, which
are not looked at.

Source: released code, `gloria/models/`.
"""

from __future__ import annotations

from dataclasses import replace

from cleft.config import ImageTowerConfig, LossConfig, Settings
from cleft.models.importing.keys import BERT, IMAGE, NO_POOLER, RESNET, TEXT, Section
from cleft.models.importing.layout import Facts, Layout, Weights, cropped_images, width_of
from cleft.models.importing.sizes import bert_tower, resnet_config


def _settings(weights: Weights, size: int, _facts: Facts) -> Settings:
    return Settings(
        method="gloria",
        images=cropped_images(size),
        image=ImageTowerConfig(model=None, scratch=resnet_config(weights), pooling="mean", resize=size * 299 // 224),
        text=replace(bert_tower(weights, most_tokens=97), layers=(-1, -2, -3, -4), pooling="mean"),
        loss=LossConfig(
            projection="to-text",
            embed_dim=width_of(weights, "image_projection.weight"),
            temperature=0.1,
            train_temperature=False,
        ),
    )


def _complete(weights: Weights, _size: int) -> Weights:
    local = weights.get("region_projection.weight")  # a convolution of one tap
    if local is None or local.ndim != 4 or local.shape[2:] != (1, 1):
        return weights
    return {**weights, "region_projection.weight": local[..., 0, 0]}


GLORIA = Layout(
    method="gloria",
    title="GLoRIA",
    marks=("gloria.img_encoder.model.", "gloria.text_encoder.model."),
    sections=(
        Section("gloria.img_encoder.model.", IMAGE, RESNET),
        Section("gloria.img_encoder.global_embedder.", "image_projection.", {"weight|bias": r"\g<0>"}),
        Section("gloria.img_encoder.local_embedder.", "region_projection.", {"weight": r"\g<0>"}),
        Section("gloria.text_encoder.model.", TEXT, {**BERT, **NO_POOLER}),
    ),
    settings=_settings,
    complete=_complete,
    rule="release-2",
)
