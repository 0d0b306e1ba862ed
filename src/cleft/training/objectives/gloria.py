"""GLoRIA: whole images against whole texts, and the words of a text against the regions of an image they attend to.

Each word looks at the regions of an image and makes a context of them; how well the words of a text agree with their
contexts says how well text and image do. This is asked of every image with every text, which is what makes it costly.
Two things keep it cheap: the words of all texts lie in one row without padding, and a context is never formed. Its
product with the word is the attention's mean score, and its length follows from the products of the regions with each
other.

Shapes: `B` images, `T` texts, `W` word slots, `N` words that are no padding, `M` regions, `D` dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from cleft.training.objectives.pairs import both_directions, cosines, precise

SHARPNESS = 4.0
"""Factor of a word's attention before its softmax over regions (`temp1`)."""
WORD_SCALE = 5.0
"""Factor of a word's cosine before words are summed or the best is taken (`temp2`)."""
PAIR_SCALE = 10.0
"""Factor of a similarity of image and text before the cross-entropy (`temp3`)."""
EPSILON = 1e-8
"""Least length of a vector by which is divided."""
HELD = 2**27
"""Values of attention held at once, about 2 GB with what goes with them; beyond, they are computed a second time."""


def gloria_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    regions: Tensor,
    words: Tensor,
    word_mask: Tensor,
    *,
    text_of: Tensor | None = None,
) -> Tensor:
    """Global and local loss, added.

    Args:
        image_embeds: Image embeddings of any length, `[B, D]`.
        text_embeds: Text embeddings of any length, `[T, D]`.
        regions: Local features of each image, `[B, M, D]`.
        words: Word features of each text, `[T, W, D]`.
        word_mask: Which slots are words, `[T, W]` bool. The released code counts [CLS] in and [SEP] out.
        text_of: Row of the text of each image, `[B]`, where texts that several images share are given once; without
            it, text i belongs to image i.

    Returns:
        Sum of both directions of both losses, in nats; 4 log(B) when nothing can be told apart, 0 for a single pair.

    Raises:
        ValueError: If shapes do not fit or a text has no word.

    Source:
        Huang et al., GLoRIA, and the released code, which agree but for the attention (see `word_cosines`). Both losses
        weigh 1.
    """
    return global_loss(image_embeds, text_embeds, text_of=text_of) + local_loss(
        regions, words, word_mask, text_of=text_of
    )


def global_loss(image_embeds: Tensor, text_embeds: Tensor, *, text_of: Tensor | None = None) -> Tensor:
    """Cross-entropy of ten times the cosine, both directions added; arguments as in `gloria_loss`."""
    return sum_of_directions(PAIR_SCALE * cosines(image_embeds, text_embeds), text_of)


def local_loss(
    regions: Tensor, words: Tensor, word_mask: Tensor, *, text_of: Tensor | None = None, held: int = HELD
) -> Tensor:
    """Cross-entropy of ten times the words' agreement with their regions, both directions added.

    Args:
        regions: As in `gloria_loss`, `[B, M, D]`.
        words: As in `gloria_loss`, `[T, W, D]`.
        word_mask: As in `gloria_loss`, `[T, W]` bool.
        text_of: As in `gloria_loss`, `[B]`.
        held: As in `word_cosines`.
    """
    word_cosine, text_of_word = word_cosines(regions, words, word_mask, held=held)
    summed = word_cosine.new_zeros(len(words), len(regions)).index_add(
        0, text_of_word, (WORD_SCALE * word_cosine).exp()
    )
    return sum_of_directions(PAIR_SCALE * summed.log().T, text_of)


def sum_of_directions(logits: Tensor, text_of: Tensor | None) -> Tensor:
    """Cross-entropy of both directions, added, of logits `[B, T]` whose columns are `text_of` `[B]` the images."""
    loss_i2t, loss_t2i = both_directions(logits if text_of is None else logits[:, text_of])
    return loss_i2t + loss_t2i


def local_similarity(regions: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
    """How well the words of each text agree with each image, as zero-shot classification asks it.

    Args:
        regions: As in `gloria_loss`, `[B, M, D]`.
        words: As in `gloria_loss`, `[T, W, D]`.
        word_mask: Which slots count, `[T, W]` bool. A slot of zeros has cosine 0, and its share of every region.

    Returns:
        Five times the cosine of the word that agrees best with what it attends to, `[B, T]`; no image depends on
        another.

    Source:
        The released code, whose best word takes the place of the sum over words in training.
    """
    word_cosine, text_of_word = word_cosines(regions, words, word_mask)
    # From the least cosine there is, not from zero: all words of a text may disagree with their regions.
    best = torch.full_like(word_cosine[:1], -1).expand(len(words), -1)
    best = best.scatter_reduce(0, text_of_word[:, None].expand_as(word_cosine), word_cosine, "amax")
    return WORD_SCALE * best.T


def word_cosines(regions: Tensor, words: Tensor, word_mask: Tensor, *, held: int = HELD) -> tuple[Tensor, Tensor]:
    """Cosine of each word with what it attends to in each image.

    Args:
        regions: Local features of each image, `[B, M, D]`.
        words: Word features of each text, `[T, W, D]`.
        word_mask: Which slots are words, `[T, W]` bool.
        held: Most values of attention, `N * B * M`, that are held for the way back at once. Beyond it texts come in
            groups whose attention is computed a second time on the way back.

    Returns:
        Cosines in [-1, 1], `[N, B]`, words in the order of `words[word_mask]`, and the text of each, `[N]`.

    Raises:
        ValueError: If shapes do not fit or a text has no word.

    Source:
        The released code: each region first shares itself among the words of the text, without a temperature; four
        times that share then goes through a softmax over regions. The paper has the second softmax alone, of the
        products of words and regions.
    """
    _check(regions, words, word_mask)
    text_of_word = word_mask.nonzero()[:, 0]
    with torch.autocast(regions.device.type, enabled=False):
        regions, words = precise(regions), precise(words)[word_mask]
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
        # Clamped before the root, whose slope at zero has no end.
        length = torch.cat(squares).clamp_min(EPSILON**2).sqrt()
        return torch.cat(means) / (length * words.norm(dim=-1).clamp_min(EPSILON)[:, None]), text_of_word


def _groups(counts: list[int], most: int) -> Iterator[int]:
    """Words of consecutive whole texts, at most so many together but for a text that is longer by itself."""
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
    """Product of each word with its context, and the context's squared length, both `[N, B]`.

    By hand because a pass over the attention costs nearly what a product does, and autograd makes thirty. The gradient
    that `products`, those of the regions with each other, would have is part of that of the regions.
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
        context = torch.bmm(attention.transpose(0, 1), products)  # [B, N, M]: the context's products with regions
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
            # Of the attention, then of what its softmax over regions was given.
            grad = (by_mean * scores).addcmul_(2 * by_square, context.transpose(0, 1))
            grad.sub_((grad_mean * mean + 2 * grad_square * square)[:, :, None]).mul_(attention).mul_(SHARPNESS)
            # Of the softmax over words.
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
    """Softmax down the words of each text, `[N, B * M]`."""
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
        raise ValueError("a loss needs at least one image with a region and one text; there is none")
    empty = ~word_mask.any(dim=1)
    if empty.any():
        raise ValueError(f"text {int(empty.nonzero()[0])} has no word that is not padding; leave its pair out")
