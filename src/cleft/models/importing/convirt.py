"""ConVIRT, of which nobody published official weights, in the three forms others trained it in.

MedCLIP's repository: a torchvision ResNet-50 whose `fc` is the head, a BERT read by its pooler, one layer each with a
bias. edreisMD's: a ResNet as a list of layers, the mean of BERT's tokens, two layers each; its texts were projected
without a gradient, so that BERT and the head of texts are as they began. MGCA's repository: MGCA's towers and heads,
BERT without word order among them, and nothing local. Whatever has other names is refused.

Source: MedCLIP's repository, commit d2f3345 of its history; edreisMD/ConVIRT-pytorch; HKU-MedAI/MGCA,
`models/convirt`.
"""

from __future__ import annotations

from dataclasses import replace

from cleft.config import ConvirtConfig, ImageTowerConfig, LossConfig, Settings
from cleft.models.importing.keys import (
    BERT,
    IMAGE,
    NO_POOLER,
    NUMBERED_RESNET,
    POOLER,
    RESNET,
    TEXT,
    VENDORED_BERT,
    VIT,
    Section,
    norm_head,
)
from cleft.models.importing.layout import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MIMIC_MEAN,
    MIMIC_STD,
    Facts,
    Layout,
    Weights,
    cropped_images,
    width_of,
    without_types,
)
from cleft.models.importing.mgca import towers_of_mgca
from cleft.models.importing.sizes import bert_tower, resnet_config


def _of_medclips(weights: Weights, size: int, _facts: Facts) -> Settings:
    return Settings(
        method="convirt",
        images=replace(cropped_images(size), mean=MIMIC_MEAN, std=MIMIC_STD),
        image=ImageTowerConfig(model=None, scratch=resnet_config(weights), pooling="mean"),
        text=replace(bert_tower(weights, most_tokens=77), pooling="pooler"),
        loss=LossConfig(
            projection="linear",
            embed_dim=width_of(weights, "image_projection.weight"),
            temperature=0.1,
            train_temperature=False,
        ),
    )


def _of_edreismd(weights: Weights, size: int, _facts: Facts) -> Settings:
    return Settings(
        method="convirt",
        images=replace(cropped_images(size), mean=IMAGENET_MEAN, std=IMAGENET_STD),
        image=ImageTowerConfig(model=None, scratch=resnet_config(weights), pooling="mean"),
        text=replace(bert_tower(weights), pooling="mean"),
        loss=LossConfig(
            projection="mlp",
            embed_dim=width_of(weights, "image_projection.2.weight"),
            temperature=0.1,
            train_temperature=False,
        ),
    )


def _of_mgcas(weights: Weights, size: int, _facts: Facts) -> Settings:
    return replace(towers_of_mgca("convirt", weights, size), convirt=ConvirtConfig(image_to_text=0.5))


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
    settings=_of_medclips,
)
CONVIRT_EDREISMD = Layout(
    method="convirt",
    title="ConVIRT as in edreisMD's repository",
    marks=("res_features.0.", "res_l1.", "bert_model.embeddings.", "bert_l1."),
    sections=(
        Section("res_features.", IMAGE, NUMBERED_RESNET),
        Section("res_l1.", "image_projection.0.", {"weight|bias": r"\g<0>"}),
        Section("res_l2.", "image_projection.2.", {"weight|bias": r"\g<0>"}),
        Section("bert_model.", TEXT, {**BERT, **NO_POOLER}),
        Section("bert_l1.", "text_projection.0.", {"weight|bias": r"\g<0>"}),
        Section("bert_l2.", "text_projection.2.", {"weight|bias": r"\g<0>"}),
    ),
    settings=_of_edreismd,
)
CONVIRT_MGCA = Layout(
    method="convirt",
    title="ConVIRT as in MGCA's repository",
    marks=("img_encoder.model.", "img_encoder.global_embed.", "text_encoder.model.embeddings."),
    sections=(
        Section("img_encoder.model.", IMAGE, {**VIT, **RESNET}),
        norm_head("img_encoder.global_embed.", "image_projection."),
        Section("text_encoder.model.", TEXT, VENDORED_BERT),
        norm_head("text_encoder.global_embed.", "text_projection."),
        Section("", "", {r"(img|text)_encoder\.local_embed\..*": None}),  # built with the towers, never called
    ),
    settings=_of_mgcas,
    complete=without_types,
    rule="release-2",
)
