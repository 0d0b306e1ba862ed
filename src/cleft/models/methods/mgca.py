"""MGCA: model and loss. Contrast of pairs, of words with the patches of the paired image, and of both with prototypes.

Settings: `cleft.config.MgcaConfig`.

Shapes: `B` pairs, `W` word slots, `L` tokens, `P` patches, `K` prototypes, `E` joint dimension, `H` attention heads.

Source: Wang et al. 2022 (Multi-Granularity Cross-modal Alignment) and the released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cleft.config import LossConfig, MgcaConfig, Settings
from cleft.models.dual_encoder import DualEncoder, build_projection, l2_normalise, refuse_causal
from cleft.models.image_tower import ImageTower
from cleft.models.methods.losses import PairInfo, both_directions, cosines, to_float32
from cleft.models.text_tower import TextTower

CLIPPED = (0.1, 0.9)
"""Quantiles to which attention weights are clipped."""


class MgcaFeatures(NamedTuple):
    """Global and local features of a batch, row by row, with the attention weight of each part."""

    image_embeds: Tensor
    """L2-normalised, `[B, E]`."""
    text_embeds: Tensor
    """L2-normalised, `[B, E]`."""
    regions: Tensor
    """Patches, or the last grid of a CNN; not normalised, `[B, P, E]`."""
    region_attention: Tensor
    """`[B, P]`, as `ImageRegions.attention`."""
    words: Tensor
    """Not normalised, `[B, W, E]`: the words and the end token."""
    word_mask: Tensor
    """Slots that hold one, `[B, W]` bool."""
    token_attention: Tensor
    """Attention of the class token to each token, `[B, L]`."""
    slot_of_token: Tensor
    """From 1; 0 for the class token and padding, `[B, L]`."""


class Mgca(DualEncoder):
    """MGCA's model: a dual encoder with projections of patches and words, and trainable prototypes.

    Args:
        image_tower: Image encoder; its regions are compared with words.
        text_tower: Encoder of a masked language model.
        config: Joint embedding space.
        mgca: Number of prototypes, and how padding is treated.

    Raises:
        ConfigError: If the text tower is causal, or the projection does not fit the towers.
    """

    def __init__(self, image_tower: ImageTower, text_tower: TextTower, config: LossConfig, mgca: MgcaConfig) -> None:
        refuse_causal(text_tower, "mgca")
        super().__init__(image_tower, text_tower, config)
        self.padding = mgca.padding
        self.region_projection = build_projection(image_tower.region_width, config)
        self.word_projection = build_projection(text_tower.width, config, text=True)
        self.prototypes = nn.Parameter(l2_normalise(torch.randn(mgca.prototypes, config.embed_dim)))

    def encode_pairs(self, images: Tensor, texts: Sequence[str]) -> MgcaFeatures:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Encodes images and their texts globally and locally."""
        image = self.image_tower.encode_regions(images)
        text = self.text_tower.encode_words(texts, attention=True, pad_to_max=self.padding == "released")
        words = text.words[:, 1:]  # without the class token
        mask = torch.arange(words.shape[1], device=words.device) <= text.lengths[:, None]
        # The release projects padding too: its zeros become a constant vector and enter the batch-norm statistics.
        kept = torch.ones_like(mask) if self.padding == "released" else mask
        projected = self.word_projection(words[kept])
        return MgcaFeatures(
            image_embeds=l2_normalise(self.image_projection(image.features)),
            text_embeds=l2_normalise(self.text_projection(text.features)),
            regions=self.region_projection(image.regions.flatten(0, 1)).unflatten(0, image.regions.shape[:2]),
            region_attention=image.attention,
            words=projected.new_zeros(*mask.shape, projected.shape[1]).masked_scatter(kept[..., None], projected),
            word_mask=mask,
            token_attention=text.attention,
            slot_of_token=text.slot_of_token,
        )

    def constrain_parameters_(self) -> None:
        """Clamps the temperature and L2-normalises the prototypes."""
        super().constrain_parameters_()
        normalise_rows_(self.prototypes)


def mgca_loss(model: Mgca, features: MgcaFeatures, pairs: PairInfo, settings: Settings) -> Tensor:
    """Weighted sum of instance, token and prototype loss, in nats.

    Source:
        Wang et al. 2022, overall objective. The released command weights them 1, 1, 1; the defaults of the released
        class are 1, 0.7, 0.5.
    """
    config = settings.mgca
    of_pairs, of_tokens, of_prototypes = config.weights
    word_weights = attention_of_words(
        features.token_attention[:, None, None],
        features.slot_of_token - 1,
        features.words.shape[1],
        shifted=config.word_weights == "released",
    )
    tokens = token_loss(
        features.words,
        features.regions,
        features.word_mask,
        word_weights,
        attention_of_patches(features.region_attention[:, None, None], first=0),
        mask_padding=config.padding == "masked",
    )
    prototypes = model.prototypes
    if pairs.step < config.frozen_steps:
        prototypes = (
            prototypes.detach() + 0 * prototypes
        )  # zero gradients, not none, which would be reported as a fault
    return (
        of_pairs * instance_loss(features.image_embeds, features.text_embeds, temperature=model.temperature)
        + of_tokens * tokens
        + of_prototypes * prototype_loss(features.image_embeds, features.text_embeds, prototypes)
    )


def instance_loss(image_embeds: Tensor, text_embeds: Tensor, *, temperature: float | Tensor = 0.07) -> Tensor:
    """InfoNCE, sum of both directions: 2 log(B) when all embeddings are equal, 0 for a single pair.

    Args:
        image_embeds: Image embeddings of any norm, `[B, E]`.
        text_embeds: Text embeddings of any norm, `[B, E]`.
        temperature: Divisor of the cosines, positive.
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
    """Token-wise contrast within each pair: a word and its attended patches against the other words, and vice versa.

    Other pairs of the batch are not negatives.

    Args:
        words: Word features of any norm, `[B, W, E]`.
        patches: Patch features of any norm, `[B, P, E]`.
        word_mask: Slots that are words, `[B, W]` bool. The released code includes [SEP] and excludes [CLS].
        word_weights: Weight of each word, `[B, W]`; see `attention_of_words`. Without gradient; padding has weight 0.
        patch_weights: Weight of each patch, `[B, P]`; see `attention_of_patches`. Without gradient.
        temperature: Divisor of all cosines, positive.
        mask_padding: Whether padding is removed from the negatives of a word. The released code keeps it; patches never
            attend to it.

    Returns:
        Sum of the losses of words and of patches, mean over pairs, in nats.

    Raises:
        ValueError: If shapes do not fit or a text has no word.

    Source:
        Wang et al., token-wise alignment, and the released code for ViT, where a patch's mean of words is not
        normalised and a word's mean of patches is.
    """
    _check(words, patches, word_mask, word_weights, patch_weights)
    with torch.autocast(words.device.type, enabled=False):
        words, patches = F.normalize(to_float32(words), dim=-1), F.normalize(to_float32(patches), dim=-1)
        counted = to_float32(word_weights.detach()) * word_mask
        sharp = words / temperature
        logits = sharp @ patches.mT  # [B, W, P]
        context = F.normalize(logits.softmax(dim=-1) @ patches, dim=-1)  # [B, W, E]
        of_words = sharp @ context.mT  # [B, W, W]
        if mask_padding:
            # The smallest float, not -inf: rows of padding and their gradients would be NaN.
            apart = word_mask[:, :, None] & word_mask[:, None, :]
            of_words = of_words.masked_fill(~apart, torch.finfo(of_words.dtype).min)
        attended = logits.masked_fill(~word_mask[:, :, None], -torch.inf).softmax(dim=1)
        of_patches = logits.mT @ attended  # [B, P, P]: cosines with a mean of words are means of cosines
        return _weighted(of_words, counted) + _weighted(of_patches, to_float32(patch_weights.detach()))


def _weighted(logits: Tensor, weights: Tensor) -> Tensor:
    """Mean over pairs of weighted cross-entropies of rows and columns with the diagonal, halved."""
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
    """Prototype loss: each embedding of a pair must predict the prototype assignment of the other.

    Args:
        image_embeds: Image embeddings of any norm, `[B, E]`.
        text_embeds: Text embeddings of any norm, `[B, E]`.
        prototypes: L2-normalised rows, `[K, E]`; see `normalise_rows_`.
        epsilon: Divisor of the similarities that are assigned; the smaller, the harder the assignment.
        temperature: Divisor of the similarities that predict the assignment.
        iterations: Iterations of Sinkhorn's algorithm.

    Returns:
        Mean loss per pair, in nats. A single pair is assigned to all prototypes equally.

    Raises:
        ValueError: If shapes do not fit.

    Source:
        Wang et al., disease-level alignment, whose formula lacks the minus sign (confirmed by the authors). Each
        process assigns its own pairs, as in the released code, whose synchronisation is never executed.
    """
    if image_embeds.shape != text_embeds.shape or image_embeds.shape[-1] != prototypes.shape[-1]:
        raise ValueError(
            f"image_embeds {tuple(image_embeds.shape)}, text_embeds {tuple(text_embeds.shape)} and prototypes "
            f"{tuple(prototypes.shape)} must have one row per pair, or prototype, and the same width"
        )
    with torch.autocast(image_embeds.device.type, enabled=False):
        rows = to_float32(prototypes)
        of_image = F.normalize(to_float32(image_embeds), dim=-1) @ rows.T
        of_text = F.normalize(to_float32(text_embeds), dim=-1) @ rows.T
        return (
            F.cross_entropy(of_text / temperature, sinkhorn(of_image / epsilon, iterations))
            + F.cross_entropy(of_image / temperature, sinkhorn(of_text / epsilon, iterations))
        ) / 2


@torch.no_grad()
def sinkhorn(logits: Tensor, iterations: int = 3) -> Tensor:
    """Assigns rows to prototypes with equal total weight for every prototype.

    Args:
        logits: Similarities divided by their temperature, `[B, K]`.
        iterations: Number of alternating normalisations of prototypes and rows.

    Returns:
        Assignment `[B, K]` without gradient; each row sums to one, and each column nearly to B / K.

    Example:
        >>> sinkhorn(torch.tensor([[5.0, 0.0], [5.0, 0.0]])).tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """
    # In log space: exp(1 / 0.05) overflows half precision and loses float32 precision.
    shares = to_float32(logits)
    for _ in range(iterations):
        shares = shares.log_softmax(dim=0).log_softmax(dim=1)
    return shares.softmax(dim=1)


@torch.no_grad()
def normalise_rows_(prototypes: Tensor) -> None:
    """L2-normalises prototypes `[K, E]` in place; rows of zeros are unchanged."""
    prototypes.copy_(F.normalize(to_float32(prototypes), dim=-1))


@torch.no_grad()
def attention_of_words(attention: Tensor, word_of_token: Tensor, slots: int, *, shifted: bool = False) -> Tensor:
    """Returns the attention of [CLS] in the last block, summed per word.

    Args:
        attention: Attention of the last block, before dropout, `[B, H, L, L]`; token 0 is [CLS].
        word_of_token: Word slot of each token, -1 for [CLS] and padding, `[B, L]`.
        slots: Number of word slots.
        shifted: Whether each token gets the attention of the next token, as in the released code, which removes [CLS]
            from the attention but not from the tokens.

    Returns:
        `[B, slots]`: mean over heads, sum over word pieces, clipped between the 10th and 90th percentile of the
        non-zero values, scaled to sum to one. Zeros for a text without words.

    Raises:
        ValueError: If a token's word is beyond the slots.

    Source:
        Wang et al., token-wise alignment; percentiles and shift are from the released code.
    """
    if int(word_of_token.max()) >= slots:
        raise ValueError(f"word_of_token contains slot {int(word_of_token.max())}; there are {slots} slots, from 0")
    weights = to_float32(attention)[:, :, 0].mean(dim=1)  # [B, L]
    if shifted:
        weights = F.pad(weights[:, 1:], (0, 1))
    summed = weights.new_zeros(len(weights), slots + 1).scatter_add(1, word_of_token + 1, weights)[:, 1:]
    return _clipped(summed, summed > 0)


@torch.no_grad()
def attention_of_patches(attention: Tensor, *, first: int = 1) -> Tensor:
    """Returns the attention of [CLS] in the last block to each patch.

    Args:
        attention: Attention of the last block, before dropout, `[B, H, L, L]`; token 0 is [CLS].
        first: Token of the first patch.

    Returns:
        `[B, L - first]`: mean over heads, clipped between the 10th and 90th percentile, scaled to sum to one.

    Source:
        As `attention_of_words`. The released code weights all regions of a ResNet equally.
    """
    weights = to_float32(attention)[:, :, 0, first:].mean(dim=1)
    return _clipped(weights, torch.ones_like(weights, dtype=torch.bool))


def _clipped(weights: Tensor, counted: Tensor) -> Tensor:
    """Clips counted values of each row to their quantiles, scales rows to sum to one, and sets the rest to zero."""
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
        raise ValueError("a loss needs at least one pair with a word and a patch")
    empty = ~word_mask.any(dim=1)
    if empty.any():
        raise ValueError(f"text {int(empty.nonzero()[0])} has no word; leave its pair out")
