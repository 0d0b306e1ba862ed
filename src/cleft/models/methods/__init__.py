"""The methods that train a model on images and texts: each a few lines of towers, heads and what it reads of a batch.

Whatever a method is, learning and evaluation ask its model the same. `METHODS` names them all; one more is one entry
here, for its model, and one in `cleft.training.methods`, for its loss (docs/decisions/0120).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import torch

from cleft.config import Settings, text_rule
from cleft.models.dual_encoder import DualEncoder
from cleft.models.image_tower import ImageTower, build_image_tower
from cleft.models.methods.gloria import Gloria
from cleft.models.methods.mgca import Mgca
from cleft.models.methods.mrm import Mrm
from cleft.models.text_tower import TextTower, build_text_tower

MethodModel: TypeAlias = DualEncoder | Mrm
"""A model of any method that learns from texts."""


def _dual(image_tower: ImageTower, text_tower: TextTower, settings: Settings) -> DualEncoder:
    return DualEncoder(image_tower, text_tower, settings.loss)


def _gloria(image_tower: ImageTower, text_tower: TextTower, settings: Settings) -> Gloria:
    return Gloria(image_tower, text_tower, settings.loss)


def _mgca(image_tower: ImageTower, text_tower: TextTower, settings: Settings) -> Mgca:
    return Mgca(image_tower, text_tower, settings.loss, settings.mgca)


def _mrm(image_tower: ImageTower, text_tower: TextTower, settings: Settings) -> Mrm:
    return Mrm(image_tower, text_tower, settings.mrm)


class Method(NamedTuple):
    """How the model of a method is put together."""

    assemble: Callable[[ImageTower, TextTower, Settings], MethodModel]
    """From the two towers to the model."""
    title: str
    """What people call it."""
    groups: tuple[str, ...] = ()
    """Settings of its own that decide an embedding, besides those of the towers and the joint space."""
    regions: bool = False
    """Whether it reads the regions of an image."""
    meets: bool = True
    """Whether images and texts meet in one space, so that they can be compared."""


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "cleft": Method(_dual, "CLEFT"),
        "clip": Method(_dual, "CLIP"),
        "convirt": Method(_dual, "ConVIRT"),
        "medclip": Method(_dual, "MedCLIP"),
        "gloria": Method(_gloria, "GLoRIA", regions=True),
        "mgca": Method(_mgca, "MGCA", groups=("mgca",), regions=True),
        "mrm": Method(_mrm, "MRM", groups=("mrm",), regions=True, meets=False),
    }
)
"""Name in the setting `method` to the method."""


def build_model(
    settings: Settings, captions: Sequence[str], seed: int | None = None, *, learnable: Sequence[str] | None = None
) -> MethodModel:
    """Builds the model the settings describe.

    Args:
        settings: Which method, which towers, how adapted, and the joint space.
        captions: Training captions: what will be read; their tokens may move.
        seed: Decides all random weights; `settings.seed` if not given. Torch's global generator stays as it was.
        learnable: What a tokenizer from scratch is learned from; by default the captions.

    Raises:
        ConfigError: If a tower cannot be found or built, or the method cannot work with it.
        CheckpointError: If the files of a tower cannot be read or do not fit.
    """
    method = METHODS[settings.method]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed if seed is None else seed)  # the CPU's alone
        image_tower = build_image_tower(settings.image, settings.images, regions=method.regions)
        text = replace(settings.text, normalisation=text_rule(settings))
        text_tower = build_text_tower(text, captions, learnable=learnable)
        return method.assemble(image_tower, text_tower, settings)
