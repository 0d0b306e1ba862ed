"""MGCA: pairs against pairs, words against patches of their own pair, and both against prototypes of the whole data.

Shapes: `B` pairs, `W` word slots, `P` patches, `E` joint dimension, `K` prototypes; `H` heads and `L` tokens of an
attention.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cleft.training.objectives.pairs import both_directions, cosines, precise

CLIPPED = (0.1, 0.9)
"""Quantiles between which a weight of attention must lie."""


def mgca_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    words: Tensor,
    patches: Tensor,
    word_mask: Tensor,
    word_weights: Tensor,
    patch_weights: Tensor,
    prototypes: Tensor,
    *,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
    mask_padding: bool = False,
) -> Tensor:
    """Instance, token and prototype loss, weighted and added.

    Args:
        image_embeds: Image embeddings, `[B, E]`.
        text_embeds: Text embeddings, `[B, E]`.
        words: As in `token_loss`, `[B, W, E]`.
        patches: As in `token_loss`, `[B, P, E]`.
        word_mask: As in `token_loss`, `[B, W]` bool.
        word_weights: As in `token_loss`, `[B, W]`.
        patch_weights: As in `token_loss`, `[B, P]`.
        prototypes: As in `prototype_loss`, `[K, E]`.
        weights: Of the three losses.
        mask_padding: As in `token_loss`.

    Returns:
        The sum, in nats.

    Raises:
        ValueError: If shapes do not fit or a text has no word.

    Source:
        Wang et al., Multi-Granularity Cross-modal Alignment, the overall objective. The released command weighs them 1,
        1, 1, the released class by itself 1, 0.7, 0.5.
    """
    of_pairs, of_tokens, of_prototypes = weights
    return (
        of_pairs * instance_loss(image_embeds, text_embeds)
        + of_tokens * token_loss(words, patches, word_mask, word_weights, patch_weights, mask_padding=mask_padding)
        + of_prototypes * prototype_loss(image_embeds, text_embeds, prototypes)
    )


def instance_loss(image_embeds: Tensor, text_embeds: Tensor, *, temperature: float | Tensor = 0.07) -> Tensor:
    """InfoNCE whose two directions are added: 2 log(B) when all embeddings are equal, 0 for a single pair.

    Args:
        image_embeds: Image embeddings of any length, `[B, E]`.
        text_embeds: Text embeddings of any length, `[B, E]`.
        temperature: Divides the cosines, positive.
    """
    loss_i2t, loss_t2i = both_directions(cosines(image_embeds, text_embeds) / temperature)
    return loss_i2t + loss_t2i


def token_loss(
    words: Tensor,
    patches: Tensor,
    word_mask: Tensor,
    word_weights: Tensor,
    patch_weights: Tensor,
    *,
    temperature: float = 0.1,
    mask_padding: bool = False,
) -> Tensor:
    """What a word finds in the image must tell it from the other words of its text, and so for patches.

    A pair is compared with itself alone; the other pairs of the batch are no negatives.

    Args:
        words: Word features of any length, `[B, W, E]`.
        patches: Patch features of any length, `[B, P, E]`.
        word_mask: Which slots are words, `[B, W]` bool. The released code counts [SEP] in and [CLS] out.
        word_weights: What each word counts, `[B, W]`; see `attention_of_words`. No gradient flows through it, and
            padding counts nothing.
        patch_weights: What each patch counts, `[B, P]`; see `attention_of_patches`. No gradient flows through it.
        temperature: Divides all cosines, positive.
        mask_padding: Whether padding is left out of the slots that a word must be told from. The released code tells
            words from padding too; patches never attend to it.

    Returns:
        Loss of words and of patches, added, mean over pairs, in nats.

    Raises:
        ValueError: If shapes do not fit or a text has no word.

    Source:
        Wang et al., token-wise alignment, and the released code for ViT, where a patch's mean of words keeps its
        length and a word's mean of patches does not.
    """
    _check(words, patches, word_mask, word_weights, patch_weights)
    with torch.autocast(words.device.type, enabled=False):
        words, patches = F.normalize(precise(words), dim=-1), F.normalize(precise(patches), dim=-1)
        counted = precise(word_weights.detach()) * word_mask
        sharp = words / temperature
        logits = sharp @ patches.mT  # [B, W, P]
        found = F.normalize(logits.softmax(dim=-1) @ patches, dim=-1)  # [B, W, E]
        of_words = sharp @ found.mT  # [B, W, W]
        if mask_padding:
            # The smallest float, not -inf: a row of padding would be NaN, and its gradient too.
            apart = word_mask[:, :, None] & word_mask[:, None, :]
            of_words = of_words.masked_fill(~apart, torch.finfo(of_words.dtype).min)
        heard = logits.masked_fill(~word_mask[:, :, None], -torch.inf).softmax(dim=1)
        of_patches = logits.mT @ heard  # [B, P, P]: the mean of words is linear, so its cosines are means of cosines
        return _weighted(of_words, counted) + _weighted(of_patches, precise(patch_weights.detach()))


def _weighted(logits: Tensor, weights: Tensor) -> Tensor:
    """Mean over pairs of the weighted cross-entropies of rows and columns with the diagonal, halved."""
    own = logits.diagonal(dim1=1, dim2=2)
    apart = (logits.logsumexp(dim=2) - own) + (logits.logsumexp(dim=1) - own)
    return (weights * apart).sum() / (2 * len(logits))


def prototype_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    prototypes: Tensor,
    *,
    epsilon: float = 0.05,
    temperature: float = 0.2,
    iterations: int = 3,
) -> Tensor:
    """Each half of a pair must name the prototypes that the other half was assigned to.

    Args:
        image_embeds: Image embeddings of any length, `[B, E]`.
        text_embeds: Text embeddings of any length, `[B, E]`.
        prototypes: Rows of unit length, `[K, E]`; see `normalise_rows_`.
        epsilon: Divides the similarities that are assigned; the smaller, the harder the assignment.
        temperature: Divides the similarities that must name them.
        iterations: Of Sinkhorn's algorithm.

    Returns:
        Mean loss per pair, in nats. A single pair is assigned to all prototypes alike.

    Raises:
        ValueError: If shapes do not fit.

    Source:
        Wang et al., disease-level alignment, whose formula lacks the minus sign (the authors confirm it). Each process
        assigns its own pairs, as in the released code, whose way to join them is never taken.
    """
    if image_embeds.shape != text_embeds.shape or image_embeds.shape[-1] != prototypes.shape[-1]:
        raise ValueError(
            f"image_embeds {tuple(image_embeds.shape)}, text_embeds {tuple(text_embeds.shape)} and prototypes "
            f"{tuple(prototypes.shape)} must have one row per pair, or prototype, and the same width"
        )
    with torch.autocast(image_embeds.device.type, enabled=False):
        rows = precise(prototypes)
        of_image = F.normalize(precise(image_embeds), dim=-1) @ rows.T
        of_text = F.normalize(precise(text_embeds), dim=-1) @ rows.T
        return (
            F.cross_entropy(of_text / temperature, sinkhorn(of_image / epsilon, iterations))
            + F.cross_entropy(of_image / temperature, sinkhorn(of_text / epsilon, iterations))
        ) / 2


@torch.no_grad()
def sinkhorn(logits: Tensor, iterations: int = 3) -> Tensor:
    """Assigns rows to prototypes so that every prototype is given about the same.

    Args:
        logits: Similarities over their temperature, `[B, K]`.
        iterations: How often prototypes and rows are scaled in turns.

    Returns:
        Shares `[B, K]` without gradient; each row sums to one, and each column nearly to B / K.

    Example:
        >>> sinkhorn(torch.tensor([[5.0, 0.0], [5.0, 0.0]])).tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """
    # By logarithms: the exponential of 1 / 0.05 leaves nothing of half precision, and little of float32.
    shares = precise(logits)
    for _ in range(iterations):
        shares = shares.log_softmax(dim=0).log_softmax(dim=1)
    return shares.softmax(dim=1)


@torch.no_grad()
def normalise_rows_(prototypes: Tensor) -> None:
    """Brings prototypes `[K, E]` to unit length in place, as is done before every step; rows of zeros stay."""
    prototypes.copy_(F.normalize(precise(prototypes), dim=-1))


@torch.no_grad()
def attention_of_words(attention: Tensor, word_of_token: Tensor, slots: int, *, shifted: bool = False) -> Tensor:
    """What the last block's [CLS] looks at, word by word.

    Args:
        attention: Of the last block, before dropout, `[B, H, L, L]`; token 0 is [CLS].
        word_of_token: Slot of the word each token is a piece of, -1 for [CLS] and padding, `[B, L]`.
        slots: Number of word slots.
        shifted: Whether each token is given the attention of the one after it, as by the released code, which cuts
            [CLS] off the attention but not off the tokens.

    Returns:
        `[B, slots]`: mean over heads, sum over pieces, clipped between the 10th and 90th percentile of what is not
        zero, scaled to sum to one. A text without words has zeros.

    Raises:
        ValueError: If a token's word lies beyond the slots.

    Source:
        Wang et al., token-wise alignment; percentiles and shift are the released code's.
    """
    if int(word_of_token.max()) >= slots:
        raise ValueError(f"word_of_token names slot {int(word_of_token.max())}; there are {slots} slots, from 0")
    looked = precise(attention)[:, :, 0].mean(dim=1)  # [B, L]
    if shifted:
        looked = F.pad(looked[:, 1:], (0, 1))
    summed = looked.new_zeros(len(looked), slots + 1).scatter_add(1, word_of_token + 1, looked)[:, 1:]
    return _clipped(summed, summed > 0)


@torch.no_grad()
def attention_of_patches(attention: Tensor, *, first: int = 1) -> Tensor:
    """What the last block's [CLS] looks at, patch by patch.

    Args:
        attention: Of the last block, before dropout, `[B, H, L, L]`; token 0 is [CLS].
        first: Token of the first patch.

    Returns:
        `[B, L - first]`: mean over heads, clipped between the 10th and 90th percentile, scaled to sum to one.

    Source:
        As `attention_of_words`. The released code's ResNet weighs all its regions alike.
    """
    looked = precise(attention)[:, :, 0, first:].mean(dim=1)
    return _clipped(looked, torch.ones_like(looked, dtype=torch.bool))


def _clipped(weights: Tensor, counted: Tensor) -> Tensor:
    """Clips what is counted of each row to its middle, scales rows to sum to one, and makes the rest zero."""
    low, high = weights.where(counted, torch.nan).nanquantile(weights.new_tensor(CLIPPED), dim=1, keepdim=True)
    clipped = weights.clamp(low, high).where(counted, 0)
    return clipped / clipped.sum(dim=1, keepdim=True).clamp_min(torch.finfo(clipped.dtype).tiny)


def _check(words: Tensor, patches: Tensor, word_mask: Tensor, word_weights: Tensor, patch_weights: Tensor) -> None:
    if words.dim() != 3 or patches.dim() != 3 or len(words) != len(patches) or words.shape[2] != patches.shape[2]:
        raise ValueError(
            f"words {tuple(words.shape)} and patches {tuple(patches.shape)} must be [pairs, words, width] "
            f"and [pairs, patches, width] of as many pairs and the same width"
        )
    if word_mask.shape != words.shape[:2] or word_weights.shape != words.shape[:2]:
        raise ValueError(
            f"word_mask {tuple(word_mask.shape)} and word_weights {tuple(word_weights.shape)} must have one value "
            f"per slot of words {tuple(words.shape)}"
        )
    if patch_weights.shape != patches.shape[:2]:
        raise ValueError(
            f"patch_weights {tuple(patch_weights.shape)} must have one value per patch of patches "
            f"{tuple(patches.shape)}"
        )
    if not words.numel() or not patches.numel():
        raise ValueError("a loss needs at least one pair with a word and a patch; there is none")
    empty = ~word_mask.any(dim=1)
    if empty.any():
        raise ValueError(f"text {int(empty.nonzero()[0])} has no word that is not padding; leave its pair out")
