"""ConVIRT, of which nobody published official weights, as MedCLIP's repository trained it.

A torchvision ResNet-50 whose `fc` is the head, a BERT read by its pooler, one layer each with a bias, temperature 0.1.
Other re-implementations have other forms and are refused by the names of their weights.

Source: MedCLIP's repository, commit d2f3345 of its history.
"""

from __future__ import annotations

from cleft.config import ImagesConfig, ImageTowerConfig, LossConfig, Settings, TextTowerConfig
from cleft.towers.published.keys import BERT, IMAGE, POOLER, RESNET, TEXT, Section
from cleft.towers.published.layout import MIMIC_MEAN, MIMIC_STD, Facts, Layout, Weights, width_of
from cleft.towers.published.sizes import bert_config, resnet_config


def _settings(weights: Weights, size: int, _facts: Facts) -> Settings:
    return Settings(
        method="convirt",
        images=ImagesConfig(size=size, stored_size=max(size, ImagesConfig.stored_size), mean=MIMIC_MEAN, std=MIMIC_STD),
        image=ImageTowerConfig(model=None, scratch=resnet_config(weights), pooling="mean"),
        text=TextTowerConfig(
            model=None,
            scratch=bert_config(weights),
            adapt="full",
            base_dropout=0.1,
            pooling="pooler",
            max_tokens=min(77, width_of(weights, f"{TEXT}embeddings.position_embeddings.weight")),
        ),
        loss=LossConfig(
            projection="linear",
            embed_dim=width_of(weights, "image_projection.weight"),
            temperature=0.1,
            train_temperature=False,
        ),
    )


CONVIRT = Layout(
    method="convirt",
    title="ConVIRT as in MedCLIP's repository",
    marks=("image_model.conv1.", "text_model.embeddings.", "text_projection_head."),
    sections=(
        Section("image_model.fc.", "image_projection.", {"weight|bias": r"\g<0>"}),
        Section("image_model.", IMAGE, RESNET),
        Section("text_model.", TEXT, {**BERT, **POOLER}),
        Section("text_projection_head.", "text_projection.", {"weight|bias": r"\g<0>"}),
    ),
    settings=_settings,
)
