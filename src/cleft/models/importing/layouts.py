"""Layouts of published checkpoints, one section per system: recognition, weight names, training settings."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor
from torch.nn import functional

from cleft.config import ConvirtConfig, ImagesConfig, ImageTowerConfig, LossConfig, MgcaConfig, Settings
from cleft.errors import CheckpointError
from cleft.models.importing.key_maps import (
    BERT,
    HUB_VISION,
    IMAGE,
    NO_POOLER,
    NUMBERED_RESNET,
    POOLER,
    RESNET,
    SWIN,
    TEXT,
    VENDORED_BERT,
    VIT,
    Section,
    bert_tower,
    blocks_of,
    dinov2_config,
    norm_head,
    resnet_config,
    swin_config,
    vit_config,
)
from cleft.text_rules import RuleName

Weights: TypeAlias = dict[str, Tensor]
"""Name in this library to weight; image towers use the names of published files of their family."""
SideFiles: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Name of a JSON file next to the weights to its content."""


class Layout(NamedTuple):
    """One published form of a method's weights."""

    method: str
    """Value of `--method`."""
    title: str
    key_prefixes: tuple[str, ...]
    """Name prefixes that a file of this layout must have; the first matching layout is used."""
    sections: tuple[Section, ...]
    """Target of every weight, and weights that are dropped."""
    settings: Callable[[Weights, int, SideFiles], Settings]
    """From weights, image size and JSON files to the settings the weights were trained with."""
    complete_weights: Callable[[Weights, int], Weights] = lambda weights, _size: weights
    """Adds or converts weights that this library needs, for an image size."""
    only_if_named: bool = False
    """Whether its names are ambiguous, so that it is used only if the method is given."""
    side_files: tuple[str, ...] = ()
    """JSON files published with the weights; the first is required. A tokenizer may be there too."""
    missing_file_hint: str = ""
    """Alternative if the first is missing, where giving the method is sufficient."""
    default_size: Callable[[Weights, SideFiles], int] = lambda _weights, _facts: 224
    """Default input size of its image tower in pixels."""
    tokenizer: str = "emilyalsentzer/Bio_ClinicalBERT"
    """Hub name of the tokenizer it was trained with."""
    text_rule: RuleName = "nfc-2"
    """Text normalisation in its release."""


MIMIC_MEAN = (0.58628, 0.58628, 0.58628)
MIMIC_STD = (0.2795, 0.2795, 0.2795)
"""Pixel statistics of MedCLIP and its ConVIRT."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Pixel statistics of CLIP."""


def width_of(weights: Mapping[str, Tensor], name: str) -> int:
    """Returns the length of the first axis of a weight.

    Raises:
        CheckpointError: If it is missing.
    """
    if name not in weights or weights[name].ndim == 0:
        raise CheckpointError(f"it lacks the weight of {name}")
    return len(weights[name])


def scale_of(weights: Weights) -> float:
    """Returns the logarithm of the inverse temperature in a file.

    Raises:
        CheckpointError: If it is missing or not a single number.
    """
    scale = weights.get("logit_scale")
    if scale is None or scale.numel() != 1:
        raise CheckpointError("it needs logit_scale, a single number")
    return float(scale)


def part_of(facts: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns an object in a JSON file; empty if it is missing.

    Raises:
        CheckpointError: If it is not an object.
    """
    part = facts.get(name) or {}
    if not isinstance(part, dict):
        raise CheckpointError(f"its configuration has {name}: {str(part)[:40]!r}, which must be an object")
    return cast("dict[str, Any]", part)


def cropped_images(size: int) -> ImagesConfig:
    """Returns settings for images cropped to `size` pixels, with CLEFT's mean and standard deviation."""
    return ImagesConfig(size=size, stored_size=max(size, ImagesConfig.stored_size))


def uncropped_images(size: int, said: Mapping[str, Any], mean: str, std: str) -> ImagesConfig:
    """Returns settings for images resized to `size` bicubically by the tower, without cropping.

    Args:
        size: Input size of the tower; images are prepared at twice the size.
        said: JSON file with the normalisation; CLIP's by default.
        mean: Key of the mean.
        std: Key of the standard deviation.

    Raises:
        CheckpointError: If one of them is not three numbers.
    """
    middle, spread = _channels(said, mean, CLIP_MEAN), _channels(said, std, CLIP_STD)
    return ImagesConfig(size=2 * size, stored_size=2 * size, mean=middle, std=spread)


def _channels(said: Mapping[str, Any], name: str, silent: tuple[float, float, float]) -> tuple[float, float, float]:
    values: Any = said.get(name, silent)
    if not isinstance(values, list | tuple) or not all(isinstance(value, int | float) for value in values):
        values = ()
    if len(values) != 3:
        raise CheckpointError(f"its configuration has {name}: {said[name]!r:.40}, which must be three numbers")
    return cast("tuple[float, float, float]", tuple(values))


def side_in(said: Mapping[str, Any]) -> int:
    """Returns the input size of an image tower in a JSON file; 224 by default."""
    return number_in(said, "image_size", 224)


def number_in(said: Mapping[str, Any], name: str, default: int) -> int:
    """Returns an integer in a JSON file, or `default` if it is missing.

    Raises:
        CheckpointError: If it is not an integer.
    """
    number = said.get(name, default)
    if not isinstance(number, int):
        raise CheckpointError(f"its configuration has {name}: {number!r:.40}, which must be an integer")
    return number


def without_types(weights: Weights, _size: int) -> Weights:
    """Adds a zero embedding of token types, which the BERT of MGCA and the authors' CLIP lacks."""
    table = f"{TEXT}embeddings.word_embeddings.weight"
    if table not in weights or weights[table].ndim != 2:
        return weights
    return {
        **weights,
        f"{TEXT}embeddings.token_type_embeddings.weight": weights[table].new_zeros(1, weights[table].shape[1]),
    }


def norm_head_options(weights: Weights, temperature: float = 0.07) -> dict[str, Any]:
    """Returns settings of the joint space with MGCA's heads."""
    return {
        "projection": "mlp-norm",
        "hidden_dim": width_of(weights, "image_projection.0.weight"),
        "embed_dim": width_of(weights, "image_projection.3.weight"),
        "temperature": temperature,
    }


def is_vit(weights: Weights) -> bool:
    """Whether the image tower is a ViT; otherwise it is a ResNet."""
    return f"{IMAGE}embeddings.cls_token" in weights


# MGCA: `vit_base.ckpt` and `resnet_50.ckpt`, written by Lightning 1.5. Its BERT has six blocks, no token types, and
# position 0 for every token, a bug of the released code that the weights depend on. Two layers for attention between
# words and regions are in the file and unused. Source: released code, `mgca_module.py` and `backbones/`.


def towers_of_mgca(method: Literal["mgca", "convirt"], weights: Weights, size: int) -> Settings:
    """Returns settings of towers and heads as in MGCA's repository, for MGCA and its baselines."""
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


def _mgca_settings(weights: Weights, size: int, _facts: SideFiles) -> Settings:
    mgca = MgcaConfig(prototypes=width_of(weights, "prototypes"), padding="released", word_weights="released")
    return replace(towers_of_mgca("mgca", weights, size), mgca=mgca)


def _complete_mgca(weights: Weights, size: int) -> Weights:
    return {name: _squeeze_pointwise(name, tensor) for name, tensor in without_types(weights, size).items()}


def _squeeze_pointwise(name: str, tensor: Tensor) -> Tensor:
    """Returns the weight of a local head, a convolution with kernel size 1, as a linear layer."""
    local = name.startswith(("region_projection.", "word_projection."))
    return tensor[..., 0] if local and tensor.ndim == 3 and tensor.shape[2] == 1 else tensor


MGCA = Layout(
    method="mgca",
    title="MGCA",
    key_prefixes=("prototype_layer.weight", "img_encoder_q.model.", "text_encoder_q.model.embeddings."),
    sections=(
        Section("img_encoder_q.model.", IMAGE, {**VIT, **RESNET}),
        norm_head("img_encoder_q.global_embed.", "image_projection."),
        norm_head("img_encoder_q.local_embed.", "region_projection."),
        Section("text_encoder_q.model.", TEXT, VENDORED_BERT),
        norm_head("text_encoder_q.global_embed.", "text_projection."),
        norm_head("text_encoder_q.local_embed.", "word_projection."),
        Section("", "", {r"prototype_layer\.weight": "prototypes", r"(patch|word)_local_atten_layer\..*": None}),
    ),
    settings=_mgca_settings,
    complete_weights=_complete_mgca,
    text_rule="release-2",
)


# GLoRIA: `chexpert_resnet50.ckpt` and `chexpert_resnet18.ckpt`, written by Lightning 1.1. Images of 224 pixels are
# resized to 299. Texts stay in BERT's space: words are sums of the last four layers, a text is the mean of its words.
# BERT's pooler and the OmegaConf settings in the file are ignored. Source: released code, `gloria/models/`.


def _gloria_settings(weights: Weights, size: int, _facts: SideFiles) -> Settings:
    return Settings(
        method="gloria",
        images=cropped_images(size),
        image=ImageTowerConfig(model=None, scratch=resnet_config(weights), pooling="mean", resize=size * 299 // 224),
        text=replace(bert_tower(weights, most_tokens=97), pooled_layers=(-1, -2, -3, -4), pooling="mean"),
        loss=LossConfig(
            projection="to-text",
            embed_dim=width_of(weights, "image_projection.weight"),
            temperature=0.1,
            train_temperature=False,
        ),
    )


def _complete_gloria(weights: Weights, _size: int) -> Weights:
    local = weights.get("region_projection.weight")  # a convolution with kernel size 1
    if local is None or local.ndim != 4 or local.shape[2:] != (1, 1):
        return weights
    return {**weights, "region_projection.weight": local[..., 0, 0]}


GLORIA = Layout(
    method="gloria",
    title="GLoRIA",
    key_prefixes=("gloria.img_encoder.model.", "gloria.text_encoder.model."),
    sections=(
        Section("gloria.img_encoder.model.", IMAGE, RESNET),
        Section("gloria.img_encoder.global_embedder.", "image_projection.", {"weight|bias": r"\g<0>"}),
        Section("gloria.img_encoder.local_embedder.", "region_projection.", {"weight": r"\g<0>"}),
        Section("gloria.text_encoder.model.", TEXT, {**BERT, **NO_POOLER}),
    ),
    settings=_gloria_settings,
    complete_weights=_complete_gloria,
    text_rule="release-2",
)


# MedCLIP: `pytorch_model.bin`, alone or in the published zip. A text is the mean of all positions of layers 1, 2 and
# 12, including padding, so it depends on the other texts of its batch, as in training. BERT's pooler is ignored. A
# text head with a bias, as in earlier versions, is supported. Source: released code, `medclip/modeling_medclip.py`.


def _medclip_settings(weights: Weights, size: int, _facts: SideFiles) -> Settings:
    swin = f"{IMAGE}embeddings.patch_embeddings.projection.weight" in weights
    return Settings(
        method="medclip",
        images=replace(cropped_images(size), mean=MIMIC_MEAN, std=MIMIC_STD),
        image=ImageTowerConfig(
            model=None,
            scratch=swin_config(weights, size) if swin else resnet_config(weights),
            pooling="pooler",
        ),
        text=replace(bert_tower(weights, most_tokens=77), pooled_layers=(1, 2, -1), pooling="mean-padded"),
        loss=LossConfig(
            projection="linear" if "text_projection.bias" in weights else "linear-no-bias",
            embed_dim=width_of(weights, "image_projection.weight"),
            temperature=math.exp(-scale_of(weights)),
        ),
    )


def _complete_medclip(weights: Weights, _size: int) -> Weights:
    if "text_projection.bias" not in weights or "image_projection.bias" in weights:
        return weights
    return {
        **weights,
        "image_projection.bias": weights["text_projection.bias"].new_zeros(width_of(weights, _MEDCLIP_HEAD)),
    }


_MEDCLIP_HEAD = "image_projection.weight"

MEDCLIP = Layout(
    method="medclip",
    title="MedCLIP",
    key_prefixes=("vision_model.model.", "text_model.model."),
    sections=(
        Section("vision_model.model.fc.", "image_projection.", {"weight": r"\g<0>"}),
        Section("vision_model.model.", IMAGE, {**SWIN, **RESNET}),
        Section("vision_model.projection_head.", "image_projection.", {"weight": r"\g<0>"}),
        Section("text_model.model.", TEXT, {**BERT, **NO_POOLER}),
        Section("text_model.projection_head.", "text_projection.", {"weight|bias": r"\g<0>"}),
        Section("", "", {"logit_scale": "logit_scale"}),
    ),
    settings=_medclip_settings,
    complete_weights=_complete_medclip,
)


# ConVIRT has no official weights; three reimplementations are supported. MedCLIP's repository: a torchvision
# ResNet-50 whose `fc` is the head, BERT with its pooler, one linear layer each with a bias. edreisMD's: a ResNet as a
# list of layers, the mean of BERT's tokens, two layers each; its texts were projected without gradient, so BERT and
# the text head are untrained. MGCA's repository: MGCA's towers and heads, without local losses. Source: MedCLIP's
# repository, commit d2f3345; edreisMD/ConVIRT-pytorch; HKU-MedAI/MGCA, `models/convirt`.


def _convirt_of_medclip_settings(weights: Weights, size: int, _facts: SideFiles) -> Settings:
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


def _convirt_of_edreismd_settings(weights: Weights, size: int, _facts: SideFiles) -> Settings:
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


def _convirt_of_mgca_settings(weights: Weights, size: int, _facts: SideFiles) -> Settings:
    return replace(towers_of_mgca("convirt", weights, size), convirt=ConvirtConfig(image_to_text=0.5))


CONVIRT = Layout(
    method="convirt",
    title="ConVIRT as in MedCLIP's repository",
    key_prefixes=("image_model.conv1.", "text_model.embeddings.", "text_projection_head."),
    sections=(
        Section("image_model.fc.", "image_projection.", {"weight|bias": r"\g<0>"}),
        Section("image_model.", IMAGE, RESNET),
        Section("text_model.", TEXT, {**BERT, **POOLER}),
        Section("text_projection_head.", "text_projection.", {"weight|bias": r"\g<0>"}),
    ),
    settings=_convirt_of_medclip_settings,
)
CONVIRT_EDREISMD = Layout(
    method="convirt",
    title="ConVIRT as in edreisMD's repository",
    key_prefixes=("res_features.0.", "res_l1.", "bert_model.embeddings.", "bert_l1."),
    sections=(
        Section("res_features.", IMAGE, NUMBERED_RESNET),
        Section("res_l1.", "image_projection.0.", {"weight|bias": r"\g<0>"}),
        Section("res_l2.", "image_projection.2.", {"weight|bias": r"\g<0>"}),
        Section("bert_model.", TEXT, {**BERT, **NO_POOLER}),
        Section("bert_l1.", "text_projection.0.", {"weight|bias": r"\g<0>"}),
        Section("bert_l2.", "text_projection.2.", {"weight|bias": r"\g<0>"}),
    ),
    settings=_convirt_of_edreismd_settings,
)
CONVIRT_MGCA = Layout(
    method="convirt",
    title="ConVIRT as in MGCA's repository",
    key_prefixes=("img_encoder.model.", "img_encoder.global_embed.", "text_encoder.model.embeddings."),
    sections=(
        Section("img_encoder.model.", IMAGE, {**VIT, **RESNET}),
        norm_head("img_encoder.global_embed.", "image_projection."),
        Section("text_encoder.model.", TEXT, VENDORED_BERT),
        norm_head("text_encoder.global_embed.", "text_projection."),
        Section("", "", {r"(img|text)_encoder\.local_embed\..*": None}),  # unused
    ),
    settings=_convirt_of_mgca_settings,
    complete_weights=without_types,
    text_rule="release-2",
)


# MRM's `MRM.pth` and DINOv2 from its hub, image tower only. MRM's feature is the mean of the patches of 448-pixel
# images resized to 224; its decoders are dropped, and so is its vocabulary, which is in another file. Files with and
# without decoders are supported, those without only with `--method mrm`. DINOv2's positions in files without
# registers are interpolated as on its hub. Source: released code of MRM and of CLEFT, which uses DINOv2 as its
# ImageNet ViT.
_MRM_MEAN = (0.4978, 0.4978, 0.4978)
_MRM_STD = (0.2449, 0.2449, 0.2449)


def _mrm_settings(weights: Weights, size: int, _facts: SideFiles) -> Settings:
    return Settings(
        method="image-only",
        images=ImagesConfig(size=2 * size, stored_size=max(2 * size, 512), mean=_MRM_MEAN, std=_MRM_STD),
        image=ImageTowerConfig(model=None, scratch=vit_config(weights), pooling="patches", resize=size),
    )


def _dinov2_settings(weights: Weights, size: int, _facts: SideFiles) -> Settings:
    vision = {name.removeprefix(IMAGE): tensor for name, tensor in weights.items()}
    return Settings(
        method="image-only",
        images=cropped_images(size),
        image=ImageTowerConfig(model=None, scratch=dinov2_config(vision, registers=_REGISTERS in vision)),
    )


_MRM_DROPPED = {
    r"mask_token|decoder_pos_embed": None,
    r"decoder_(embed|blocks\.\d+|norm|pred)\..*": None,
    r"(bert_mlp|bert_encoder)\..*": None,
}

MRM = Layout(
    method="mrm",
    title="MRM",
    key_prefixes=("cls_token", "pos_embed", "patch_embed.", "bert_"),
    sections=(Section("", IMAGE, {**VIT, **_MRM_DROPPED}),),
    settings=_mrm_settings,
)
MRM_ENCODER = MRM._replace(
    key_prefixes=("cls_token", "pos_embed", "patch_embed.", "blocks.0.norm1."), only_if_named=True
)


def _interpolate_positions(weights: Weights, size: int) -> Weights:
    """Interpolates positions to the patches of an image as the hub does for files without registers.

    The hub scales by (patches + 0.1) / positions, so every position is slightly shifted; transformers does not. For
    files with registers both interpolate equally.
    """
    table, filters = (weights.get(f"{IMAGE}embeddings.{name}") for name in _PLACED)
    if table is None or filters is None or table.ndim != 3 or filters.ndim != 4:
        return weights
    positions, (patches, rest) = table.shape[1] - 1, divmod(size, filters.shape[-1])
    side = math.isqrt(max(positions, 0))
    if rest or patches == side or side * side != positions:
        return weights
    grid = table[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    factor = (patches + 0.1) / side
    grid = functional.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
    return {**weights, f"{IMAGE}embeddings.{_PLACED[0]}": torch.cat([table[:, :1], grid.flatten(2).mT], dim=1)}


_REGISTERS = "embeddings.register_tokens"
_PLACED = ("position_embeddings", "patch_embeddings.projection.weight")

DINOV2 = Layout(
    method="dinov2",
    title="DINOv2",
    key_prefixes=("register_tokens", "blocks.0.ls1.gamma"),
    sections=(Section("", IMAGE, HUB_VISION),),
    settings=_dinov2_settings,
)
DINOV2_PLAIN = DINOV2._replace(
    key_prefixes=("cls_token", "patch_embed.", "blocks.0.ls1.gamma"), complete_weights=_interpolate_positions
)


# The authors' CLIP, written by their code with Lightning. Images are pooled from two blocks of a masked autoencoder's
# decoder after the ViT, with positions of the released code; its BERT has six blocks, no token types, and position 0
# for every token. The reconstruction decoder, mask token and local heads are unused. Source: released code of CLEFT,
# `backbones/` and `CLIP`.
_DECODER = "image_tower.decoder."


def _authors_clip_settings(weights: Weights, size: int, _facts: SideFiles) -> Settings:
    return Settings(
        method="clip",
        images=cropped_images(size),
        image=ImageTowerConfig(
            model=None,
            scratch=vit_config(weights),
            pooling="cls",
            decoder_blocks=blocks_of(weights, re.escape(_DECODER) + r"blocks\.(\d+)\."),
            decoder_positions="released",
        ),
        text=replace(bert_tower(weights, most_tokens=64), pooling="cls", positions="zero"),
        loss=LossConfig(**norm_head_options(weights, math.exp(-scale_of(weights)))),
    )


AUTHORS_CLIP = Layout(
    method="clip",
    title="the authors' CLIP",
    key_prefixes=("img_encoder_q.model.decoder_blocks_feature.", "text_encoder_q.model.embeddings."),
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
    settings=_authors_clip_settings,
    complete_weights=without_types,
)
