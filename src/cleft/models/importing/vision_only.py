"""Published files of which the image tower alone is brought: MRM's `MRM.pth` and DINOv2's from its hub.

MRM's feature is the mean of the patches of 448 pixels read at 224; its decoders, which paint and which say the
report, are dropped: nothing asks them, and its vocabulary of 30,000 pieces is in another file. Whether the published
file still holds them was not to be seen; both forms are read, without them only where `--method mrm` says whose ViT
it is. DINOv2's positions in files without registers are stretched as its hub stretches them.

Source: released code of MRM and of CLEFT, which takes DINOv2 for its ImageNet-ViT.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from cleft.config import ImagesConfig, ImageTowerConfig, Settings
from cleft.models.importing.keys import IMAGE, VIT, Section
from cleft.models.importing.layout import Facts, Layout, Weights, cropped_images
from cleft.models.importing.sizes import vit_config
from cleft.models.official_keys import HUB_VISION
from cleft.models.official_sizes import vision_config

_GRAY = (0.4978, 0.4978, 0.4978)
_SPREAD = (0.2449, 0.2449, 0.2449)


def _mrm(weights: Weights, size: int, _facts: Facts) -> Settings:
    return Settings(
        method="image-only",
        images=ImagesConfig(size=2 * size, stored_size=max(2 * size, 512), mean=_GRAY, std=_SPREAD),
        image=ImageTowerConfig(model=None, scratch=vit_config(weights), pooling="patches", resize=size),
    )


def _dinov2(weights: Weights, size: int, _facts: Facts) -> Settings:
    vision = {name.removeprefix(IMAGE): tensor for name, tensor in weights.items()}
    return Settings(
        method="image-only",
        images=cropped_images(size),
        image=ImageTowerConfig(model=None, scratch=vision_config(vision, registers=_REGISTERS in vision)),
    )


_DROPPED = {
    r"mask_token|decoder_pos_embed": None,
    r"decoder_(embed|blocks\.\d+|norm|pred)\..*": None,
    r"(bert_mlp|bert_encoder)\..*": None,
}

MRM = Layout(
    method="mrm",
    title="MRM",
    marks=("cls_token", "pos_embed", "patch_embed.", "bert_"),
    sections=(Section("", IMAGE, {**VIT, **_DROPPED}),),
    settings=_mrm,
)
MRM_ENCODER = MRM._replace(marks=("cls_token", "pos_embed", "patch_embed.", "blocks.0.norm1."), asked=True)


def _stretched(weights: Weights, size: int) -> Weights:
    """Stretches positions to the patches of an image as the hub does for files without registers.

    The hub stretches by (patches + 0.1) / positions, so that every place is a little off; transformers does not. Files
    with registers are stretched alike by both.
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
    marks=("register_tokens", "blocks.0.ls1.gamma"),
    sections=(Section("", IMAGE, HUB_VISION),),
    settings=_dinov2,
)
DINOV2_PLAIN = DINOV2._replace(marks=("cls_token", "patch_embed.", "blocks.0.ls1.gamma"), complete=_stretched)
