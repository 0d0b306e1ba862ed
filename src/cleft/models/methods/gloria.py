"""GLoRIA: model and loss. Global image-text contrast plus contrast of words with attended image regions.

Every word attends to the regions of every image of the batch, which makes the local loss expensive. Two measures keep
it cheap: the words of all texts are concatenated without padding, and the attended context vector is never formed. Its
dot product with the word is the attention-weighted mean of the scores; its norm follows from the regions' Gram matrix.
Settings: `cleft.config.GloriaConfig`.

Shapes: `B` images, `T` texts, `W` word slots, `N` words that are not padding, `M` regions, `E` joint dimension.

Source: Huang et al. 2021 and the released code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from cleft.config import LossConfig, Settings
from cleft.errors import ConfigError
from cleft.models.dual_encoder import DualEncoder, l2_normalise, refuse_causal
from cleft.models.image_tower import ImageTower
from cleft.models.methods.losses import PairInfo, both_directions, cosines, to_float32
from cleft.models.text_tower import TextTower, WordFeatures

SHARPNESS = 4.0
"""Factor of a word's share before its softmax over regions (`temp1`)."""
WORD_SCALE = 5.0
"""Factor of a word's cosine before the sum or maximum over words (`temp2`)."""
PAIR_SCALE = 10.0
"""Factor of the image-text similarity before the cross-entropy (`temp3`)."""
EPSILON = 1e-8
"""Lower bound of norms used as divisors."""
HELD = 2**27
"""Attention values stored at once, about 2 GB with gradients; above it, they are recomputed in the backward pass."""


class GloriaFeatures(NamedTuple):
    """Global and local features of a batch, row by row."""

    image_embeds: Tensor
    """L2-normalised, `[B, E]`."""
    text_embeds: Tensor
    """L2-normalised, `[B, E]`."""
    regions: Tensor
    """Not normalised, `[B, M, E]`."""
    words: Tensor
    """Not normalised, `[B, W, E]`."""
    word_mask: Tensor
    """Slots that count, `[B, W]` bool: the class token and the words, not the end token."""


class Gloria(DualEncoder):
    """GLoRIA's model: a dual encoder with a projection of image regions.

    Args:
        image_tower: Image encoder; its regions are compared with words.
        text_tower: Encoder of a masked language model. Its states are the word features; they are not projected.
        config: Joint embedding space; its width is the text tower's.

    Raises:
        ConfigError: If the text tower is causal, or `loss.projection` is not `to-text`.

    Source:
        Huang et al. 2021, and the released code: word features are sums over word pieces and the last four layers.
    """

    def __init__(self, image_tower: ImageTower, text_tower: TextTower, config: LossConfig) -> None:
        refuse_causal(text_tower, "gloria")
        if config.projection != "to-text":
            raise ConfigError(
                f"method=gloria compares words in the text tower's own space; set loss.projection=to-text, not "
                f"{config.projection}"
            )
        super().__init__(image_tower, text_tower, config)
        self.region_projection = nn.Linear(image_tower.region_width, config.embed_dim, bias=False)

    def encode_pairs(self, images: Tensor, texts: Sequence[str]) -> GloriaFeatures:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Encodes images and their texts globally and locally."""
        image = self.image_tower.encode_regions(images)
        text = self.encode_words(texts)
        slot = torch.arange(text.words.shape[1], device=text.words.device)
        return GloriaFeatures(
            image_embeds=l2_normalise(self.image_projection(image.features)),
            text_embeds=l2_normalise(self.text_projection(text.features)),
            regions=self.region_projection(image.regions),
            words=text.words,
            word_mask=slot <= text.lengths[:, None],
        )

    def encode_regions(self, images: Tensor) -> Tensor:
        """Returns projected regions `[B, M, E]` of gray images `[B, 1, H, W]` uint8."""
        return self.region_projection(self.image_tower.encode_regions(images).regions)

    def encode_words(self, texts: Sequence[str], *, pad_to_max: bool = False) -> WordFeatures:
        """Returns word features as `TextTower.read_words` does, but summed over layers, not averaged."""
        text = self.text_tower.encode_words(texts, pad_to_max=pad_to_max)
        return text._replace(words=text.words * len(self.text_tower.lm.layers))


def gloria_loss(_model: Gloria, features: GloriaFeatures, pairs: PairInfo, settings: Settings) -> Tensor:
    """Weighted sum of global and local loss, in nats; with weights of 1, 4 log(B) when all embeddings are equal."""
    # Every image is compared with the words of every text, so equal texts are passed once.
    distinct, text_of = pairs.caption_ids.unique(return_inverse=True)
    first = torch.full_like(distinct, len(text_of)).scatter_reduce(
        0, text_of, torch.arange(len(text_of), device=text_of.device), "amin"
    )
    of_global = global_loss(features.image_embeds, features.text_embeds[first], text_of=text_of)
    of_local = local_loss(features.regions, features.words[first], features.word_mask[first], text_of=text_of)
    return settings.gloria.global_weight * of_global + settings.gloria.local_weight * of_local


def global_loss(image_embeds: Tensor, text_embeds: Tensor, *, text_of: Tensor | None = None) -> Tensor:
    """Cross-entropy of ten times the cosine, sum of both directions.

    Args:
        image_embeds: Image embeddings of any norm, `[B, E]`.
        text_embeds: Text embeddings of any norm, `[T, E]`.
        text_of: Row of each image's text, `[B]`, where texts shared by several images are passed once; by default text
            i belongs to image i.
    """
    return _both_directions_sum(PAIR_SCALE * cosines(image_embeds, text_embeds), text_of)


def local_loss(
    regions: Tensor, words: Tensor, word_mask: Tensor, *, text_of: Tensor | None = None, held: int = HELD
) -> Tensor:
    """Cross-entropy of ten times the log-sum-exp of word-context cosines, sum of both directions.

    Args:
        regions: Local features of each image, `[B, M, E]`.
        words: Word features of each text, `[T, W, E]`.
        word_mask: Slots that are words, `[T, W]` bool. The released code includes [CLS] and excludes [SEP].
        text_of: As in `global_loss`, `[B]`.
        held: As in `word_cosines`.

    Raises:
        ValueError: If shapes do not fit or a text has no word.
    """
    word_cosine, text_of_word = word_cosines(regions, words, word_mask, held=held)
    summed = word_cosine.new_zeros(len(words), len(regions)).index_add(
        0, text_of_word, (WORD_SCALE * word_cosine).exp()
    )
    return _both_directions_sum(PAIR_SCALE * summed.log().T, text_of)


def _both_directions_sum(logits: Tensor, text_of: Tensor | None) -> Tensor:
    """Cross-entropy of both directions, summed, of logits `[B, T]` where column `text_of[i]` belongs to image i."""
    loss_i2t, loss_t2i = both_directions(logits if text_of is None else logits[:, text_of])
    return loss_i2t + loss_t2i


def local_similarity(regions: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
    """Returns the similarity of texts and images by their best word, as used for zero-shot classification.

    Args:
        regions: As in `local_loss`, `[B, M, E]`.
        words: As in `local_loss`, `[T, W, E]`.
        word_mask: Slots that count, `[T, W]` bool. A slot of zeros has cosine 0 but takes its share of every region.

    Returns:
        Five times the cosine of the word that matches its attended regions best, `[B, T]`; images are independent of
        each other.

    Source:
        The released code, which uses the best word here and the log-sum-exp over words in training.
    """
    word_cosine, text_of_word = word_cosines(regions, words, word_mask)
    # Start from the lowest cosine, not from zero: all cosines of a text may be negative.
    best = torch.full_like(word_cosine[:1], -1).expand(len(words), -1)
    best = best.scatter_reduce(0, text_of_word[:, None].expand_as(word_cosine), word_cosine, "amax")
    return WORD_SCALE * best.T


def word_cosines(regions: Tensor, words: Tensor, word_mask: Tensor, *, held: int = HELD) -> tuple[Tensor, Tensor]:
    """Returns the cosine of each word with its attended context in each image.

    Args:
        regions: Local features of each image, `[B, M, E]`.
        words: Word features of each text, `[T, W, E]`.
        word_mask: Slots that are words, `[T, W]` bool.
        held: Maximum number of attention values, `N * B * M`, stored for the backward pass. Above it texts are
            processed in groups whose attention is recomputed in the backward pass.

    Returns:
        Cosines in [-1, 1], `[N, B]`, words in the order of `words[word_mask]`, and the text of each, `[N]`.

    Raises:
        ValueError: If shapes do not fit or a text has no word.

    Source:
        The released code: first a softmax over the words of the text for each region, without a temperature; then four
        times that share goes through a softmax over regions. The paper has only the second softmax, of the dot products
        of words and regions.
    """
    _check(regions, words, word_mask)
    text_of_word = word_mask.nonzero()[:, 0]
    with torch.autocast(regions.device.type, enabled=False):
        regions, words = to_float32(regions), to_float32(words)[word_mask]
        products = regions.detach() @ regions.detach().mT  # [B, M, M]
        groups = list(_groups(word_mask.sum(dim=1).tolist(), held // regions[..., 0].numel()))
        means: list[Tensor] = []
        squares: list[Tensor] = []
        start = 0
        for size in groups:
            part, text = words[start : start + size], text_of_word[start : start + size]
            start += size
            given = (part, regions, products, text - text[0])
            mean, square = (
                checkpoint(_attend, *given, use_reentrant=False, preserve_rng_state=False)
                if len(groups) > 1
                else _attend(*given)
            )
            means.append(mean)
            squares.append(square)
        # Clamped before the square root, whose gradient at zero is infinite.
        length = torch.cat(squares).clamp_min(EPSILON**2).sqrt()
        return torch.cat(means) / (length * words.norm(dim=-1).clamp_min(EPSILON)[:, None]), text_of_word


def _groups(counts: list[int], most: int) -> Iterator[int]:
    """Yields numbers of words of consecutive complete texts, at most `most` together unless one text is longer."""
    size = 0
    for count in counts:
        if size and size + count > most:
            yield size
            size = 0
        size += count
    yield size


def _attend(words: Tensor, regions: Tensor, products: Tensor, text_of_word: Tensor) -> tuple[Tensor, Tensor]:
    return _Attend.apply(words, regions, products, text_of_word)  # pyright: ignore[reportReturnType]


class _Attend(torch.autograd.Function):
    """Dot product of each word with its context, and the context's squared norm, both `[N, B]`.

    Hand-written gradient, because a pass over the attention is memory-bound and autograd needs thirty. The gradient of
    `products`, the Gram matrices of the regions, is included in that of the regions.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, words: Tensor, regions: Tensor, products: Tensor, text_of_word: Tensor
    ) -> tuple[Tensor, Tensor]:
        count, (images, spots, _) = len(words), regions.shape
        scores = words @ regions.flatten(0, 1).T  # [N, B * M]
        shares = _softmax_within(scores, text_of_word)
        attention = (SHARPNESS * shares).view(count, images, spots).softmax(dim=-1)
        scores = scores.view(count, images, spots)
        context = torch.bmm(attention.transpose(0, 1), products)  # [B, N, M]: dot products of contexts and regions
        mean = torch.einsum("nbm,nbm->nb", attention, scores)
        square = torch.einsum("nbm,bnm->nb", attention, context)
        ctx.save_for_backward(words, regions, text_of_word, scores, shares, attention, context, mean, square)
        return mean, square

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_mean: Tensor, grad_square: Tensor
    ) -> tuple[Tensor, Tensor, None, None]:
        words, regions, text_of_word, scores, shares, attention, context, mean, square = ctx.saved_tensors
        with torch.autocast(words.device.type, enabled=False):
            by_mean, by_square = grad_mean[:, :, None], grad_square[:, :, None]
            # Gradient of the attention, then of the input of its softmax over regions.
            grad = (by_mean * scores).addcmul_(2 * by_square, context.transpose(0, 1))
            grad.sub_((grad_mean * mean + 2 * grad_square * square)[:, :, None]).mul_(attention).mul_(SHARPNESS)
            # Gradient of the softmax over words.
            grad = grad.flatten(1).mul_(shares)
            total = grad.new_zeros(int(text_of_word[-1]) + 1, grad.shape[1]).index_add_(0, text_of_word, grad)
            grad.sub_(total.index_select(0, text_of_word).mul_(shares))
            grad.view_as(attention).addcmul_(by_mean, attention)
            grad_words = grad @ regions.flatten(0, 1)
            grad_regions = (grad.T @ words).view_as(regions)
            weighted = torch.mul(by_square, attention, out=grad.view_as(attention))
            grad_products = torch.bmm(weighted.permute(1, 2, 0), attention.transpose(0, 1))  # symmetric
            grad_regions.baddbmm_(grad_products, regions, alpha=2)
        return grad_words, grad_regions, None, None


def _softmax_within(scores: Tensor, text_of_word: Tensor) -> Tensor:
    """Softmax over the words of each text, `[N, B * M]`."""
    texts = int(text_of_word[-1]) + 1
    row = text_of_word[:, None].expand_as(scores)
    top = scores.new_full((texts, scores.shape[1]), -torch.inf).scatter_reduce(0, row, scores, "amax")
    shares = scores.sub(top.index_select(0, text_of_word)).exp_()
    total = torch.zeros_like(top).index_add_(0, text_of_word, shares)
    return shares.div_(total.index_select(0, text_of_word))


def _check(regions: Tensor, words: Tensor, word_mask: Tensor) -> None:
    if regions.dim() != 3 or words.dim() != 3 or regions.shape[2] != words.shape[2]:
        raise ValueError(
            f"regions {tuple(regions.shape)} and words {tuple(words.shape)} must be [images, regions, width] "
            f"and [texts, words, width] of the same width"
        )
    if word_mask.shape != words.shape[:2]:
        raise ValueError(
            f"word_mask {tuple(word_mask.shape)} must have one value per slot of words {tuple(words.shape)}"
        )
    if not regions.numel() or not words.numel():
        raise ValueError("a loss needs at least one image with a region and one text")
    empty = ~word_mask.any(dim=1)
    if empty.any():
        raise ValueError(f"text {int(empty.nonzero()[0])} has no word; leave its pair out")
