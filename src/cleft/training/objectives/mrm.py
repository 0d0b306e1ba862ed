"""MRM: what was hidden of an image is painted, twice as fine as it was seen, and what was hidden of its report is said.

Shapes: `B` pairs, `P` patches, `V` values of a patch, `L` tokens, `K` entries of the vocabulary.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from cleft.training.objectives.pairs import precise

VARIANCE = 1e-6
"""Added to the variance of a patch before its values are divided by the root."""


def target_patches(images: Tensor, *, patch_size: int = 32) -> Tensor:
    """Cuts images into the patches that are to be painted.

    Args:
        images: `[B, 3, S, S]`, or of one channel that stands for all three; 448 pixels where 224 are seen.
        patch_size: Pixels along an edge, twice those of a patch that is seen.

    Returns:
        `[B, P, patch_size * patch_size * 3]`: patches row by row, in each pixels row by row, the channels of a pixel
        together. This is the order in which published decoders paint.

    Raises:
        ValueError: If an image is no square of whole patches, or has neither one channel nor three.

    Source:
        The released code, and He et al., Masked Autoencoders, before it.
    """
    count, channels, height, width = images.shape
    if height != width or height % patch_size or channels not in (1, 3):
        raise ValueError(
            f"images {tuple(images.shape)} must be [images, 1 or 3, size, size] with a size that is a multiple of "
            f"{patch_size}"
        )
    blocks = images.expand(-1, 3, -1, -1).unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))
    return blocks.permute(0, 2, 4, 3, 5, 1).reshape(count, (height // patch_size) ** 2, -1)


def image_reconstruction(pred: Tensor, target: Tensor, masked: Tensor, *, standardise: bool = True) -> Tensor:
    """Mean squared error of the patches that were hidden.

    Args:
        pred: What was painted, `[B, P, V]`.
        target: What is there, `[B, P, V]`; see `target_patches`.
        masked: Which patches were hidden, `[B, P]` bool.
        standardise: Whether each patch of the target is brought to mean 0 and deviation 1 before; one of a single grey
            becomes zeros.

    Returns:
        Mean over the hidden patches of the whole batch; 0 if none was. Where targets are standardised, by the unbiased
        variance, zeros get (V - 1) / V: what a decoder that has learned nothing starts from.

    Raises:
        ValueError: If shapes differ.

    Source:
        The released code with `--norm_pix_loss`, as its script has it.
    """
    if pred.shape != target.shape or masked.shape != pred.shape[:2]:
        raise ValueError(
            f"pred {tuple(pred.shape)} and target {tuple(target.shape)} must be equal in shape, "
            f"and masked {tuple(masked.shape)} must have one value per patch"
        )
    with torch.autocast(pred.device.type, enabled=False):
        target = precise(target)
        if standardise:
            variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
            target = (target - mean) / (variance + VARIANCE).sqrt()
        error = (precise(pred) - target).square().mean(dim=-1)
        return _mean_where(error, masked)


def report_reconstruction(
    logits: Tensor, ids: Tensor, masked: Tensor, *, where: Literal["masked", "all"] = "masked"
) -> Tensor:
    """Cross-entropy of the tokens of a report.

    Args:
        logits: Of each entry of the vocabulary, `[B, L, K]`.
        ids: The tokens before any was hidden, `[B, L]`.
        masked: Which tokens were hidden, `[B, L]` bool.
        where: `masked` asks for the hidden tokens, as the paper has it; `all` for every position, padding too, as the
            released code does.

    Returns:
        Mean over the tokens asked for, of the whole batch, in nats: log(K) when all logits are equal, 0 if no token was
        hidden.

    Raises:
        ValueError: If shapes differ.

    Source:
        Zhou et al., Masked Record Modeling, and the released code.
    """
    if logits.shape[:2] != ids.shape or masked.shape != ids.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)}, ids {tuple(ids.shape)} and masked {tuple(masked.shape)} must have the same "
            f"reports and positions"
        )
    if where == "all":
        masked = torch.ones_like(masked)
    with torch.autocast(logits.device.type, enabled=False):
        loss = F.cross_entropy(precise(logits).flatten(0, 1), ids.flatten(), reduction="none")
    return _mean_where(loss.view(ids.shape), masked)


def _mean_where(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of what is counted; the rest may hold anything. 0 if nothing is."""
    return values.where(counted, 0).sum() / counted.sum().clamp_min(1)
