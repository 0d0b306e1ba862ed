"""Published files of which the image tower alone is brought: MRM's `MRM.pth` and DINOv2's from its hub.

MRM's feature is the mean of the patches of 448 pixels read at 224; its decoders, which paint and which say the
report, are dropped: nothing asks them, and its vocabulary of 30,000 pieces is in another file. Whether the published
file still holds them was not to be seen; both forms are read, without them only where `--method mrm` says whose ViT
it is.

Source: released code of MRM and of CLEFT, which takes DINOv2 for its ImageNet-ViT.
"""

from __future__ import annotations

from cleft.config import ImagesConfig, ImageTowerConfig, Settings
from cleft.towers.official_keys import HUB_VISION
from cleft.towers.official_sizes import vision_config
from cleft.towers.published.keys import IMAGE, VIT, Section
from cleft.towers.published.layout import Facts, Layout, Weights
from cleft.towers.published.sizes import vit_config

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
        images=ImagesConfig(size=size, stored_size=max(size, ImagesConfig.stored_size)),
        image=ImageTowerConfig(model=None, scratch=vision_config(vision)),
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
DINOV2 = Layout(
    method="dinov2",
    title="DINOv2",
    marks=("register_tokens", "blocks.0.ls1.gamma"),
    sections=(Section("", IMAGE, HUB_VISION),),
    settings=_dinov2,
)
