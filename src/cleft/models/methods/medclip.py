"""MedCLIP: loss. Unpaired images and texts match as far as their findings agree; the model is a plain dual encoder.

Settings: `cleft.config.MedclipConfig`.

Shapes: `B` images, `T` texts, `E` joint dimension, `C` findings.

Source: Wang et al. 2022 and the released code.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cleft.config import Settings
from cleft.models.dual_encoder import DualEncoder
from cleft.models.methods.losses import PairInfo, cosines, to_float32
from cleft.types import Batch


class MedclipFeatures(NamedTuple):
    """Embeddings of images, of a text each, and of an augmented version of that text."""

    image_embeds: Tensor
    """L2-normalised, `[B, E]`."""
    text_embeds: Tensor
    """L2-normalised, `[B, E]`."""
    augmented_embeds: Tensor
    """L2-normalised, `[B, E]`; no rows where there are no augmented texts."""


def read_medclip(model: DualEncoder, batch: Batch) -> MedclipFeatures:
    """Encodes images, their texts and the augmented texts of a batch."""
    text_embeds = model.encode_text([*batch.captions, *(batch.reworded or ())])
    count = len(batch.captions)
    return MedclipFeatures(model.encode_image(batch.images), text_embeds[:count], text_embeds[count:])


def medclip_loss(model: DualEncoder, features: MedclipFeatures, pairs: PairInfo, settings: Settings) -> Tensor:
    """Semantic matching of images with texts, averaged with that of the augmented texts where there are any."""
    # As MedCLIP prepares labels: negative, uncertain and not mentioned are all 0.
    image_labels, text_labels = (pairs.labels == 1).float(), (pairs.text_labels == 1).float()
    scale, similarity = model.logit_scale.exp(), settings.medclip.similarity
    of_texts, *of_augmented = (
        semantic_matching(features.image_embeds, embeds, scale, image_labels, text_labels, similarity=similarity)
        for embeds in (features.text_embeds, features.augmented_embeds)
        if len(embeds)
    )
    return (of_texts + of_augmented[0]) / 2 if of_augmented else of_texts


def semantic_matching(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    image_labels: Tensor,
    text_labels: Tensor,
    *,
    similarity: Literal["dot", "cosine"] = "dot",
) -> Tensor:
    """Cross-entropy in both directions against targets that grow with the findings in common.

    Args:
        image_embeds: Image embeddings of any norm, `[B, E]`.
        text_embeds: Text embeddings of any norm, `[T, E]`.
        logit_scale: Inverse temperature, a positive scalar; `DualEncoder.clamp_logit_scale_` keeps it in [1, 100], as
            the released code does before each use.
        image_labels: Findings of each image, `[B, C]`: 1 present, -1 absent, 0 or NaN not mentioned.
        text_labels: Findings of each text, likewise, `[T, C]`.
        similarity: As in `label_similarity`.

    Returns:
        Mean of both directions, in nats; log(B) for as many texts as images when all embeddings are equal. At least
        the entropy of its targets, so it does not reach 0; 0 for a single image and text.

    Raises:
        ValueError: If shapes do not fit.

    Source:
        Wang et al., MedCLIP, semantic matching loss.
    """
    if len(image_labels) != len(image_embeds) or len(text_labels) != len(text_embeds):
        raise ValueError(
            f"image_labels {tuple(image_labels.shape)} and text_labels {tuple(text_labels.shape)} must have one row "
            f"per image and text; there are {len(image_embeds)} and {len(text_embeds)}"
        )
    with torch.autocast(image_embeds.device.type, enabled=False):
        logits = to_float32(logit_scale) * cosines(image_embeds, text_embeds)
        shared = label_similarity(image_labels, text_labels, similarity=similarity).to(logits)
        loss_i2t = F.cross_entropy(logits, shared.softmax(dim=1))
        loss_t2i = F.cross_entropy(logits.T, shared.T.softmax(dim=1))
        return (loss_i2t + loss_t2i) / 2


def label_similarity(
    image_labels: Tensor, text_labels: Tensor, *, similarity: Literal["dot", "cosine"] = "dot"
) -> Tensor:
    """Returns the label similarity of each image with each text.

    Args:
        image_labels: As in `semantic_matching`, `[B, C]`.
        text_labels: As in `semantic_matching`, `[T, C]`.
        similarity: `dot` counts common findings, so that three of them outweigh one by e²; `cosine` divides by the
            norms, and is 0 where no finding is mentioned.

    Returns:
        `[B, T]`; its softmax is the target.

    Source:
        The released code counts; the paper divides.

    Example:
        >>> label_similarity(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 1.0], [1.0, -1.0]])).tolist()
        [[2.0, 0.0]]
    """
    if image_labels.shape[-1] != text_labels.shape[-1]:
        raise ValueError(
            f"image_labels {tuple(image_labels.shape)} and text_labels {tuple(text_labels.shape)} must have the same "
            f"findings"
        )
    ours, theirs = (to_float32(labels).nan_to_num(0.0) for labels in (image_labels, text_labels))
    if similarity == "cosine":
        ours, theirs = F.normalize(ours, dim=-1), F.normalize(theirs, dim=-1)
    return ours @ theirs.T
