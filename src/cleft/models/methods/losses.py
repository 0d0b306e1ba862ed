"""Losses on global embeddings, shared by the methods.

InfoNCE variants use the same similarities in both directions and differ in the other rows of the batch: negatives;
negatives unless they have the same caption; or partial matches where findings overlap. The sigmoid loss classifies each
image-text pair independently. All losses of `LOSSES` have the same signature. To add a loss: write it here, add it to
`LOSSES`, and add its name to `LossConfig.name`.

Shapes: `B` pairs, `T` texts, `E` joint dimension, `C` findings.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from cleft.config import Settings
from cleft.models.dual_encoder import DualEncoder, PairEmbeddings


def to_float32(values: Tensor) -> Tensor:
    """Returns half precision as float32, other dtypes unchanged: similarities are compared in float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def cosines(image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
    """Returns the cosine of every image with every text, `[B, T]`, images in rows; 0 for a zero vector.

    Args:
        image_embeds: Image embeddings of any norm, `[B, E]`.
        text_embeds: Text embeddings of any norm, `[T, E]`.

    Raises:
        ValueError: If widths differ, or one of them is empty.
    """
    if image_embeds.dim() != 2 or text_embeds.dim() != 2 or image_embeds.shape[1] != text_embeds.shape[1]:
        raise ValueError(
            f"image_embeds {tuple(image_embeds.shape)} and text_embeds {tuple(text_embeds.shape)} "
            f"must be rows of the same width"
        )
    if not image_embeds.numel() or not text_embeds.numel():
        raise ValueError("a loss needs at least one image and one text")
    with torch.autocast(image_embeds.device.type, enabled=False):
        return F.normalize(to_float32(image_embeds), dim=-1) @ F.normalize(to_float32(text_embeds), dim=-1).T


def both_directions(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the cross-entropy of rows and of columns against the diagonal.

    Args:
        logits: Images in rows, texts in columns, `[B, B]`; row i belongs to column i.

    Returns:
        Mean image-to-text and mean text-to-image loss, in nats. Both are log(B) when all logits are equal and 0 for a
        single pair.

    Raises:
        ValueError: If there are not as many texts as images.
    """
    if logits.dim() != 2 or logits.shape[0] != logits.shape[1]:
        raise ValueError(f"logits {tuple(logits.shape)} must have one text per image")
    pair = torch.arange(len(logits), device=logits.device)
    return F.cross_entropy(logits, pair), F.cross_entropy(logits.T, pair)


class PairInfo(NamedTuple):
    """Captions and labels of the pairs of a batch."""

    caption_ids: Tensor
    """The same number for the same text, `[B]`."""
    labels: Tensor
    """Findings of the images, `[B, C]`: 1 present, 0 absent, -1 uncertain, NaN not mentioned."""
    text_labels: Tensor
    """Findings of the texts, likewise; equal to `labels` where the texts describe these images."""
    step: int
    """Optimiser steps done so far."""


class Loss(Protocol):
    """Signature of the losses in `LOSSES`; each uses the arguments it needs."""

    def __call__(
        self,
        image_embeds: Tensor,
        text_embeds: Tensor,
        logit_scale: Tensor,
        *,
        caption_ids: Tensor,
        labels: Tensor,
        logit_bias: Tensor | None,
    ) -> Tensor:
        """Returns the mean loss per pair, in nats."""
        ...


def info_nce(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    *,
    caption_ids: Tensor | None = None,
    labels: Tensor | None = None,
    logit_bias: Tensor | None = None,
) -> Tensor:
    """Symmetric InfoNCE loss over the pairs of a batch.

    Row i of both inputs belongs together; every other row is a negative, also with the same caption;
    see `label_aware_nce`.

    Args:
        image_embeds: L2-normalised image embeddings, `[B, E]`.
        text_embeds: L2-normalised text embeddings, `[B, E]`.
        logit_scale: Inverse temperature 1/τ, a positive scalar.
        caption_ids: Not used.
        labels: Not used.
        logit_bias: Not used.

    Returns:
        Mean loss per pair, in nats. It is log(B) when all embeddings are equal, and never negative.

    Raises:
        ValueError: If the two inputs differ in shape.

    Source:
        CLEFT, section 2.1, Eq. 1. The equation leaves the positive pair out of the denominator; like CLIP and the
        authors' code we keep it in, and average the two directions (docs/decisions/0050).
    """
    return _contrast(image_embeds, text_embeds, logit_scale, torch.eye(len(image_embeds), device=image_embeds.device))


def label_aware_nce(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    *,
    caption_ids: Tensor,
    labels: Tensor | None = None,
    logit_bias: Tensor | None = None,
) -> Tensor:
    """InfoNCE in which rows with the same caption are positives and never negatives.

    Captions written from labels repeat: of 72 of CheXpert about 44 are distinct. Each positive is compared only with
    the negatives, so that images with the same caption do not compete; a pair's loss is the mean over its positives.

    Sharing the target among equal captions would change nothing: their embeddings are equal, so value and gradients are
    those of `info_nce` (docs/decisions/0050).

    Args:
        image_embeds: L2-normalised image embeddings, `[B, E]`.
        text_embeds: L2-normalised text embeddings, `[B, E]`.
        logit_scale: Inverse temperature 1/τ, a positive scalar.
        caption_ids: The same number for the same caption, `[B]`.
        labels: Not used.
        logit_bias: Not used.

    Returns:
        Mean loss per pair, in nats, never negative: `info_nce` when all captions differ, 0 when all are equal, because
        there are no negatives.

    Raises:
        ValueError: If the inputs do not have one row per pair.
    """
    _check_rows("caption_ids", caption_ids, image_embeds)
    same = caption_ids[:, None] == caption_ids[None, :]  # [B, B]
    share = same / same.sum(dim=1, keepdim=True)
    with torch.autocast(image_embeds.device.type, enabled=False):
        logits_per_image = _similarities(image_embeds, text_embeds, logit_scale)
        loss_i2t = _against_negatives(logits_per_image, same, share)
        loss_t2i = _against_negatives(logits_per_image.T, same, share)
        return (loss_i2t + loss_t2i) / 2


def soft_overlap_nce(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    *,
    labels: Tensor,
    caption_ids: Tensor | None = None,
    logit_bias: Tensor | None = None,
) -> Tensor:
    """InfoNCE whose targets grow with the overlap of two images' positive findings.

    The weight of a pair is the Jaccard index of the two sets of findings labelled 1. An image without a positive
    finding matches only itself.

    Args:
        image_embeds: L2-normalised image embeddings, `[B, E]`.
        text_embeds: L2-normalised text embeddings, `[B, E]`.
        logit_scale: Inverse temperature 1/τ, a positive scalar.
        labels: One column per finding, `[B, C]`: 1 counts as present; 0, -1 and NaN do not.
        caption_ids: Not used.
        logit_bias: Not used.

    Returns:
        Mean loss per pair, in nats: `info_nce` when no two images share a finding.

    Raises:
        ValueError: If the inputs do not have one row per pair.
    """
    _check_rows("labels", labels, image_embeds)
    return _contrast(image_embeds, text_embeds, logit_scale, overlap(labels))


def sigmoid(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    *,
    caption_ids: Tensor | None = None,
    labels: Tensor | None = None,
    logit_bias: Tensor | None = None,
) -> Tensor:
    """Sigmoid loss: every image-text combination of a batch is classified as matching or not, independently.

    There is no softmax over the batch; the bias compensates that only one of B combinations matches. Other rows with
    the same caption are negatives, as in `info_nce`.

    Args:
        image_embeds: L2-normalised image embeddings, `[B, E]`.
        text_embeds: L2-normalised text embeddings, `[B, E]`.
        logit_scale: Inverse temperature, a positive scalar.
        caption_ids: Not used.
        labels: Not used.
        logit_bias: Added to every logit, a scalar; None for 0.

    Returns:
        Sum over texts, mean over images, of the binary cross-entropy, in nats; never negative.

    Raises:
        ValueError: If the two inputs differ in shape.

    Source:
        Zhai, Mustafa, Kolesnikov, Beyer: Sigmoid Loss for Language Image Pre-Training (ICCV 2023), Algorithm 1.
    """
    with torch.autocast(image_embeds.device.type, enabled=False):
        logits = _similarities(image_embeds, text_embeds, logit_scale)
        logits = logits if logit_bias is None else logits + logit_bias.float()
        signs = 2 * torch.eye(len(logits), device=logits.device) - 1  # [B, B]
        return F.softplus(-signs * logits).sum(dim=1).mean()


def overlap(labels: Tensor) -> Tensor:
    """Returns the Jaccard index of the positive findings of every two rows.

    Args:
        labels: `[B, C]`: 1 counts as present; 0, -1 and NaN do not.

    Returns:
        `[B, B]` in [0, 1], symmetric, 1 on the diagonal; rows without a finding are 0 elsewhere.

    Example:
        >>> overlap(torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, -1.0]])).tolist()
        [[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    present = (labels == 1).float()
    shared = present @ present.T
    count = present.sum(dim=1)
    either = count[:, None] + count[None, :] - shared
    return (shared / either.clamp_min(1)).fill_diagonal_(1)


LOSSES: Mapping[str, Loss] = MappingProxyType(
    {
        "info_nce": info_nce,
        "label_aware_nce": label_aware_nce,
        "soft_overlap_nce": soft_overlap_nce,
        "sigmoid": sigmoid,
    }
)
"""Name in `loss.name` to loss."""


def _contrast(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor, matches: Tensor) -> Tensor:
    """Cross-entropy in both directions against `matches` `[B, B]`, symmetric, each row scaled to sum to one."""
    with torch.autocast(image_embeds.device.type, enabled=False):
        logits_per_image = _similarities(image_embeds, text_embeds, logit_scale)
        targets = matches / matches.sum(dim=1, keepdim=True)
        loss_i2t = F.cross_entropy(logits_per_image, targets)
        loss_t2i = F.cross_entropy(logits_per_image.T, targets)
        return (loss_i2t + loss_t2i) / 2


def _similarities(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor) -> Tensor:
    """Logits `[B, B]`, images in rows, in float32: in half precision distant pairs get equal logits."""
    if image_embeds.shape != text_embeds.shape:
        raise ValueError(
            f"image_embeds {tuple(image_embeds.shape)} and text_embeds {tuple(text_embeds.shape)} "
            f"must have one row per pair and the same width"
        )
    return logit_scale.float() * image_embeds.float() @ text_embeds.float().T


def _against_negatives(logits: Tensor, same: Tensor, share: Tensor) -> Tensor:
    """Mean over rows and their positives of log(1 + sum of negatives / positive)."""
    # The smallest float, not -inf: a row without negatives would make the gradient NaN.
    negatives = logits.masked_fill(same, torch.finfo(logits.dtype).min).logsumexp(dim=1, keepdim=True)
    return (share * F.softplus(negatives - logits)).sum(dim=1).mean()


def _check_rows(name: str, value: Tensor, image_embeds: Tensor) -> None:
    if len(value) != len(image_embeds):
        raise ValueError(f"{name} {tuple(value.shape)} must have one row per pair; there are {len(image_embeds)} pairs")


def convirt_loss(
    image_embeds: Tensor, text_embeds: Tensor, *, temperature: float | Tensor = 0.1, image_to_text: float = 0.75
) -> Tensor:
    """ConVIRT: InfoNCE with different weights of the two directions.

    Row i of both inputs belongs together; every other row is a negative, also with the same caption.

    Args:
        image_embeds: Image embeddings of any norm, `[B, E]`.
        text_embeds: Text embeddings of any norm, `[B, E]`.
        temperature: Divisor of the cosines, positive.
        image_to_text: Weight of the image-to-text direction, in [0, 1]; the other direction has the rest.

    Returns:
        Mean loss per pair, in nats: log(B) when all embeddings are equal, 0 for a single pair.

    Raises:
        ValueError: If the inputs differ in shape or are empty.

    Source:
        Zhang et al., Contrastive Learning of Medical Visual Representations from Paired Images and Text. There is no
        official code.
    """
    loss_i2t, loss_t2i = both_directions(cosines(image_embeds, text_embeds) / temperature)
    return image_to_text * loss_i2t + (1 - image_to_text) * loss_t2i


def contrastive_loss(model: DualEncoder, features: PairEmbeddings, pairs: PairInfo, settings: Settings) -> Tensor:
    """Mean loss per pair of CLEFT and CLIP: the loss that `loss.name` selects, at the model's logit scale."""
    return LOSSES[settings.loss.name](
        *features,
        model.logit_scale.exp(),
        caption_ids=pairs.caption_ids,
        labels=pairs.labels,
        logit_bias=model.logit_bias,
    )
