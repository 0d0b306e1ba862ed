"""Registry of training methods: model, features and loss of each under its name in the setting `method`.

To add a method: write its page (model, features, loss) in this package, add an entry to `METHODS`, and add the name and
its settings to `cleft.config` (docs/decisions/0120).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from cleft.config import Settings, text_rule
from cleft.models.dual_encoder import DualEncoder, PairEmbeddings, encode_batch
from cleft.models.image_tower import ImageTower, build_image_tower
from cleft.models.methods.gloria import Gloria, gloria_loss
from cleft.models.methods.losses import PairInfo, contrastive_loss, convirt_loss
from cleft.models.methods.medclip import medclip_loss, read_medclip
from cleft.models.methods.mgca import Mgca, mgca_loss
from cleft.models.methods.mrm import Mrm, mrm_loss
from cleft.models.text_tower import TextTower, build_text_tower
from cleft.types import Batch

MethodModel: TypeAlias = DualEncoder | Mrm
"""Model of any method that trains on texts."""


def _dual_encoder(image_tower: ImageTower, text_tower: TextTower, settings: Settings) -> DualEncoder:
    return DualEncoder(image_tower, text_tower, settings.loss)


def _convirt_loss(model: DualEncoder, features: PairEmbeddings, _pairs: PairInfo, settings: Settings) -> Tensor:
    return convirt_loss(*features, temperature=model.temperature, image_to_text=settings.convirt.image_to_text)


class Method(NamedTuple):
    """A training method."""

    title: str
    """Name in publications."""
    build: Callable[[ImageTower, TextTower, Settings], MethodModel]
    """From the two towers to the model."""
    loss: Callable[[Any, Any, PairInfo, Settings], Tensor]
    """From model, features, pair information and settings to the mean loss per pair, a scalar."""
    read: Callable[[Any, Batch], Any] = encode_batch
    """From model and batch to features: a named tuple of tensors with one row per pair."""
    settings_groups: tuple[str, ...] = ()
    """Groups of settings that decide an embedding, besides those of the towers and the joint space."""
    uses_regions: bool = False
    """Whether it uses the regions of an image."""
    joint_space: bool = True
    """Whether images and texts are embedded in one space and can be compared."""
    compares_pairs: bool = True
    """Whether a pair is compared with the others of its batch, so that features are gathered across devices."""
    global_texts_only: bool = False
    """Whether the loss uses of a text only its embedding; validation then encodes each distinct text once."""


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "cleft": Method("CLEFT", _dual_encoder, contrastive_loss, global_texts_only=True),
        "clip": Method("CLIP", _dual_encoder, contrastive_loss, global_texts_only=True),
        "convirt": Method("ConVIRT", _dual_encoder, _convirt_loss, global_texts_only=True),
        "medclip": Method("MedCLIP", _dual_encoder, medclip_loss, read_medclip),
        "gloria": Method(
            "GLoRIA",
            lambda image, text, settings: Gloria(image, text, settings.loss),
            gloria_loss,
            uses_regions=True,
        ),
        "mgca": Method(
            "MGCA",
            lambda image, text, settings: Mgca(image, text, settings.loss, settings.mgca),
            mgca_loss,
            settings_groups=("mgca",),
            uses_regions=True,
        ),
        "mrm": Method(
            "MRM",
            lambda image, text, settings: Mrm(image, text, settings.mrm),
            mrm_loss,
            settings_groups=("mrm",),
            uses_regions=True,
            joint_space=False,
            compares_pairs=False,
        ),
    }
)
"""Name in the setting `method` to the method."""


def build_model(
    settings: Settings, captions: Sequence[str], seed: int | None = None, *, learnable: Sequence[str] | None = None
) -> MethodModel:
    """Builds the model described by the settings.

    Args:
        settings: Method, towers, adapters and joint space.
        captions: Training captions; the embedding rows of their tokens may be trainable.
        seed: Decides all random weights; by default `settings.seed`. Torch's global generator is left unchanged.
        learnable: Texts to train a new tokenizer on; by default the captions.

    Raises:
        ConfigError: If a tower cannot be found or built, or does not work with the method.
        CheckpointError: If the files of a tower cannot be read or do not fit.
    """
    method = METHODS[settings.method]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed if seed is None else seed)  # of the CPU only
        image_tower = build_image_tower(settings.image, settings.images, regions=method.uses_regions)
        text = replace(settings.text, normalisation=text_rule(settings))
        text_tower = build_text_tower(text, captions, learnable=learnable)
        return method.build(image_tower, text_tower, settings)
