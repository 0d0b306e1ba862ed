"""What each method learns by: from what its model read of a batch to one number.

`OBJECTIVES` has an entry for every method of `cleft.models.methods`; whoever trains looks one up and is done.

Shapes: `B` pairs of a batch, `E` joint dimension, `C` findings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cleft.config import Settings
from cleft.models.dual_encoder import DualEncoder, Pairs
from cleft.models.methods.gloria import Gloria, RegionsAndWords
from cleft.models.methods.mgca import Mgca, WeighedParts
from cleft.models.methods.mrm import Masked, Mrm
from cleft.training.losses import LOSSES
from cleft.training.objectives.convirt import convirt_loss
from cleft.training.objectives.gloria import global_loss, local_loss
from cleft.training.objectives.medclip import medclip_loss, semantic_matching
from cleft.training.objectives.mgca import (
    attention_of_patches,
    attention_of_words,
    instance_loss,
    prototype_loss,
    token_loss,
)
from cleft.training.objectives.mrm import image_reconstruction, report_reconstruction, target_patches
from cleft.types import Batch


class Facts(NamedTuple):
    """What is known of the pairs of a batch besides what a model read of them."""

    caption_ids: Tensor
    """The same number for the same text, `[B]`."""
    labels: Tensor
    """One column per finding, `[B, C]`: 1, 0, -1, or NaN where nobody mentioned it."""
    text_labels: Tensor
    """What the texts say, likewise: the same where they were written of these images."""
    step: int
    """Optimiser steps done so far."""


Objective = Callable[[Any, Any, Facts, Settings], Tensor]
"""From model, what it read, facts and settings to the mean loss of a pair, a scalar."""


def _read(model: Any, batch: Batch) -> Any:
    return model.read(batch.images, batch.captions)


class Learning(NamedTuple):
    """How a method learns."""

    objective: Objective
    read: Callable[[Any, Batch], Any] = _read
    """From model and batch to what the objective looks at: a named tuple with a row per pair."""
    compares: bool = True
    """Whether a pair is compared with the others of its batch, so that devices must show each other what they read."""
    reads_apart: bool = False
    """Whether all that is read of a text is its embedding: validation then reads each distinct text once."""


def _contrast(model: DualEncoder, read: Pairs, facts: Facts, settings: Settings) -> Tensor:
    compare = LOSSES[settings.loss.name]
    scale = model.logit_scale.exp()
    return compare(*read, scale, caption_ids=facts.caption_ids, labels=facts.labels, logit_bias=model.logit_bias)


def _convirt(model: DualEncoder, read: Pairs, facts: Facts, settings: Settings) -> Tensor:
    share = settings.convirt.image_to_text
    return convirt_loss(*read, temperature=_temperature(model), image_to_text=share)


class Reworded(NamedTuple):
    """Images with a text each, and with the same text in other words."""

    image_embeds: Tensor
    """Unit length, `[B, E]`."""
    text_embeds: Tensor
    """Unit length, `[B, E]`."""
    reworded_embeds: Tensor
    """Unit length, `[B, E]`; no rows where nothing was reworded."""


def _read_reworded(model: DualEncoder, batch: Batch) -> Reworded:
    text_embeds = model.encode_text([*batch.captions, *(batch.reworded or ())])
    count = len(batch.captions)
    return Reworded(model.encode_image(batch.images), text_embeds[:count], text_embeds[count:])


def _medclip(model: DualEncoder, read: Reworded, facts: Facts, settings: Settings) -> Tensor:
    # As MedCLIP prepares them: what is denied, unsure or not mentioned is all the same.
    shown, said = (facts.labels == 1).float(), (facts.text_labels == 1).float()
    scale, way = model.logit_scale.exp(), settings.medclip.similarity
    if len(read.reworded_embeds):
        return medclip_loss(*read, scale, shown, said, similarity=way)
    return semantic_matching(read.image_embeds, read.text_embeds, scale, shown, said, similarity=way)


def _gloria(model: Gloria, read: RegionsAndWords, facts: Facts, settings: Settings) -> Tensor:
    # Every image is compared with the words of every text, so those of equal texts are given once.
    distinct, text_of = facts.caption_ids.unique(return_inverse=True)
    first = torch.full_like(distinct, len(text_of)).scatter_reduce(
        0, text_of, torch.arange(len(text_of), device=text_of.device), "amin"
    )
    whole = global_loss(read.image_embeds, read.text_embeds[first], text_of=text_of)
    parts = local_loss(read.regions, read.words[first], read.word_mask[first], text_of=text_of)
    return settings.gloria.global_weight * whole + settings.gloria.local_weight * parts


def _mgca(model: Mgca, read: WeighedParts, facts: Facts, settings: Settings) -> Tensor:
    config = settings.mgca
    of_pairs, of_tokens, of_prototypes = config.weights
    shifted = config.word_weights == "shifted"
    words = attention_of_words(
        read.token_attention[:, None, None], read.slot_of_token - 1, read.words.shape[1], shifted=shifted
    )
    tokens = token_loss(
        read.words,
        read.regions,
        read.word_mask,
        words,
        attention_of_patches(read.region_attention[:, None, None], first=0),
        mask_padding=config.padding == "masked",
    )
    prototypes = model.prototypes
    if facts.step < config.still_steps:
        prototypes = prototypes.detach() + 0 * prototypes  # a gradient of zero, not none: none would be a fault
    return (
        of_pairs * instance_loss(read.image_embeds, read.text_embeds, temperature=_temperature(model))
        + of_tokens * tokens
        + of_prototypes * prototype_loss(read.image_embeds, read.text_embeds, prototypes)
    )


def _mrm(model: Mrm, read: Masked, facts: Facts, settings: Settings) -> Tensor:
    config = settings.mrm
    target = target_patches(read.pixel_values, patch_size=model.patch_size)
    of_image, of_report = config.weights
    image = image_reconstruction(read.painted, target, read.patch_hidden, standardise=config.standardise)
    # Only tokens that are asked for were given logits.
    asked = torch.ones_like(read.ids, dtype=torch.bool)
    return of_image * image + of_report * report_reconstruction(read.logits, read.ids, asked)


def _temperature(model: DualEncoder) -> Tensor:
    return (-model.logit_scale).exp()


OBJECTIVES: Mapping[str, Learning] = MappingProxyType(
    {
        "cleft": Learning(_contrast, reads_apart=True),
        "clip": Learning(_contrast, reads_apart=True),
        "convirt": Learning(_convirt, reads_apart=True),
        "medclip": Learning(_medclip, read=_read_reworded),
        "gloria": Learning(_gloria),
        "mgca": Learning(_mgca),
        "mrm": Learning(_mrm, compares=False),
    }
)
"""Name in the setting `method` to how it learns."""
