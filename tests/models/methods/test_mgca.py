"""MGCA's three losses and its attention weights: by hand, against loops, and edge cases."""

import math

import pytest
import torch
from torch.nn import functional as F

from cleft.models.methods.mgca import (
    attention_of_patches,
    attention_of_words,
    instance_loss,
    normalise_rows_,
    prototype_loss,
    sinkhorn,
    token_loss,
)


def tokens(pairs=3, slots=5, patches=4, width=6, seed=0, dtype=torch.float64):
    """Words, patches, mask and weights of some pairs; padding slots contain numbers."""
    generator = torch.Generator().manual_seed(seed)
    words, spots = (
        torch.randn(pairs, count, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for count in (slots, patches)
    )
    mask = torch.arange(slots)[None] < torch.tensor([3, 1, 5])[:pairs, None]
    word_weights = torch.rand(pairs, slots, generator=generator, dtype=torch.float64).to(dtype) * mask
    patch_weights = torch.rand(pairs, patches, generator=generator, dtype=torch.float64).to(dtype)
    return words, spots, mask, word_weights, patch_weights


def pairs_of(count=4, width=6, kinds=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(rows, width, generator=generator, dtype=torch.float64) for rows in (count, count, kinds)]
    return [drawn[0].requires_grad_(), drawn[1].requires_grad_(), F.normalize(drawn[2], dim=-1).requires_grad_()]


def softmax_in_a_loop(values):
    return [value.exp() / sum(other.exp() for other in values) for value in values]


def choose_in_a_loop(query, candidates, j, temperature):
    """Negative log-probability of candidate j."""
    return -softmax_in_a_loop([query @ candidate / temperature for candidate in candidates])[j].log()


def tokens_in_a_loop(words, patches, mask, word_weights, patch_weights, mask_padding=False, temperature=0.1):
    """The formulas, one word and one patch at a time."""
    total = 0
    for text, image, real, beta, gamma in zip(words, patches, mask, word_weights, patch_weights, strict=True):
        w = [word / word.norm() for word in text]
        p = [patch / patch.norm() for patch in image]
        found = []
        for word in w:
            share = softmax_in_a_loop([word @ patch / temperature for patch in p])
            mean = sum(a * patch for a, patch in zip(share, p, strict=True))
            found.append(mean / mean.norm())
        attended = []
        spoken = [word for word, said in zip(w, real, strict=True) if said]
        for patch in p:
            share = softmax_in_a_loop([patch @ word / temperature for word in spoken])
            attended.append(sum(a * word for a, word in zip(share, spoken, strict=True)))
        candidates = [j for j in range(len(w)) if real[j] or not mask_padding]
        for place, j in enumerate(candidates):
            total = total + beta[j] / 2 * (
                choose_in_a_loop(w[j], [found[c] for c in candidates], place, temperature)
                + choose_in_a_loop(found[j], [w[c] for c in candidates], place, temperature)
            )
        for k in range(len(p)):
            total = total + gamma[k] / 2 * (
                choose_in_a_loop(p[k], attended, k, temperature) + choose_in_a_loop(attended[k], p, k, temperature)
            )
    return total / len(words)


def prototypes_in_a_loop(image, text, prototypes):
    """The formulas with Sinkhorn's algorithm as it was released, on exponentials."""
    with torch.no_grad():
        codes = []
        for embeds in (image, text):
            q = (F.normalize(embeds, dim=-1) @ prototypes.T / 0.05).exp().T
            q = q / q.sum()
            for _ in range(3):
                q = q / q.sum(dim=1, keepdim=True) / len(prototypes)
                q = q / q.sum(dim=0, keepdim=True) / len(embeds)
            codes.append((q / q.sum(dim=0, keepdim=True)).T)
    loss = 0
    for code, embeds in zip(codes, (text, image), strict=True):
        for i in range(len(embeds)):
            share = softmax_in_a_loop([embeds[i] / embeds[i].norm() @ row / 0.2 for row in prototypes])
            loss = loss - sum(q * s.log() for q, s in zip(code[i], share, strict=True)) / len(embeds) / 2
    return loss


def test_instances_of_two_orthogonal_pairs_by_hand():
    assert instance_loss(torch.eye(2), 3 * torch.eye(2), temperature=1.0).item() == pytest.approx(
        2 * math.log(1 + math.exp(-1))
    )
    assert instance_loss(torch.ones(4, 2), torch.ones(4, 2)).item() == pytest.approx(2 * math.log(4))


def test_equal_tokens_by_hand():
    alike = torch.ones(2, 3, 2), torch.ones(2, 4, 2)
    mask = torch.ones(2, 3, dtype=torch.bool)
    loss = token_loss(*alike, mask, torch.full((2, 3), 1 / 3), torch.full((2, 4), 1 / 4))
    assert loss.item() == pytest.approx(math.log(3) + math.log(4))


def test_two_words_that_find_their_patches_by_hand():
    axes = torch.eye(2)[None]
    mask, weights = torch.ones(1, 2, dtype=torch.bool), torch.tensor([[1.0, 0.0]])
    loss = token_loss(axes, axes, mask, weights, weights, temperature=1.0)
    # Of two axes each gives itself e / (e + 1): unit length makes (e, 1) / hypot of it, the plain mean keeps it.
    own, other = math.e / (math.e + 1), 1 / (math.e + 1)
    word = math.log(1 + math.exp((other - own) / math.hypot(own, other)))
    patch = math.log(1 + math.exp(other - own))
    assert loss.item() == pytest.approx(word + patch)


@pytest.mark.parametrize("mask_padding", [False, True])
def test_value_and_gradient_of_tokens_are_those_of_the_loop(mask_padding):
    batch = tokens()
    short = token_loss(*batch, mask_padding=mask_padding)
    long = tokens_in_a_loop(*batch, mask_padding=mask_padding)
    torch.testing.assert_close(short, long)
    torch.testing.assert_close(torch.autograd.grad(short, batch[:2]), torch.autograd.grad(long, batch[:2]))


def test_value_and_gradient_of_prototypes_are_those_of_the_loop():
    batch = pairs_of()
    short, long = prototype_loss(*batch), prototypes_in_a_loop(*batch)
    torch.testing.assert_close(short, long)
    torch.testing.assert_close(torch.autograd.grad(short, batch), torch.autograd.grad(long, batch))


def test_the_order_of_pairs_words_and_patches_does_not_matter():
    words, patches, mask, word_weights, patch_weights = tokens()
    order, spots = torch.tensor([2, 0, 1]), torch.tensor([1, 3, 0, 2])
    moved = token_loss(
        words[order].flip(1),
        patches[order][:, spots],
        mask[order].flip(1),
        word_weights[order].flip(1),
        patch_weights[order][:, spots],
    )
    torch.testing.assert_close(moved, token_loss(*tokens()))
    image, text, prototypes = pairs_of()
    turned = torch.tensor([3, 1, 2, 0])
    torch.testing.assert_close(
        prototype_loss(image[turned], text[turned], prototypes.flip(0)), prototype_loss(image, text, prototypes)
    )


def test_other_pairs_are_no_negatives_of_a_token():
    batch = tokens()
    alone = [token_loss(*(part[i : i + 1] for part in batch)) for i in range(3)]
    torch.testing.assert_close(token_loss(*batch), sum(alone) / 3)


def test_padding_matters_unless_masked():
    words, *rest = tokens()
    moved = torch.where(rest[1][..., None], words, -words)
    torch.testing.assert_close(token_loss(moved, *rest, mask_padding=True), token_loss(words, *rest, mask_padding=True))
    assert (token_loss(moved, *rest) - token_loss(words, *rest)).abs() > 0.001


def test_padding_has_no_weight():
    words, patches, mask, word_weights, patch_weights = tokens()
    heavy = word_weights + (~mask).double()
    torch.testing.assert_close(token_loss(words, patches, mask, heavy, patch_weights), token_loss(*tokens()))


@pytest.mark.parametrize("mask_padding", [False, True])
def test_masked_values_have_finite_gradients(mask_padding):
    words, *rest = tokens(dtype=torch.float32)
    padded = words.detach().where(rest[1][..., None], 0).requires_grad_()
    gradient = torch.autograd.grad(token_loss(padded, *rest, mask_padding=mask_padding), padded)[0]
    assert torch.isfinite(gradient).all()
    assert gradient[rest[1]].any()
    assert not (mask_padding and gradient[~rest[1]].any())


def test_a_high_temperature_flattens_the_loss():
    words, patches, mask, word_weights, patch_weights = tokens()
    loss = token_loss(words, patches, mask, word_weights, patch_weights, temperature=1e9)
    expected = (word_weights.sum() * math.log(5) + patch_weights.sum() * math.log(4)) / 3
    torch.testing.assert_close(loss, expected)


def test_a_low_temperature_is_finite():
    batch = tokens(dtype=torch.float32)
    loss = token_loss(*batch, temperature=1e-4)
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(loss, batch[:2]))


def test_sentences_of_one_word_are_compared_only_with_padding():
    words, patches, mask, _, patch_weights = tokens()
    mask = torch.zeros_like(mask).index_fill(1, torch.tensor([0]), True)
    weights = mask.double()
    released = token_loss(words, patches, mask, weights, patch_weights)
    torch.testing.assert_close(released, tokens_in_a_loop(words, patches, mask, weights, patch_weights))
    masked = token_loss(words, patches, mask, weights, patch_weights, mask_padding=True)
    # A single word hears nothing to choose from: every patch hears the same, and only log(P) is left.
    assert masked.item() == pytest.approx(
        tokens_in_a_loop(words, patches, mask, 0 * weights, patch_weights, mask_padding=True).item()
    )


def test_a_single_pair_has_a_token_loss_and_uniform_prototypes():
    batch = tokens(pairs=1)
    torch.testing.assert_close(token_loss(*batch), tokens_in_a_loop(*batch))
    image, text, prototypes = pairs_of(count=1)
    assert instance_loss(image, text).item() == 0
    torch.testing.assert_close(sinkhorn(image @ prototypes.T), torch.full((1, 5), 0.2, dtype=torch.float64))


def test_equal_captions_have_equal_assignments():
    image, text, prototypes = pairs_of()
    shares = sinkhorn(text[[0, 0, 1, 2]] @ prototypes.T / 0.05)
    assert torch.equal(shares[0], shares[1])
    loss = prototype_loss(image, text[[0, 0, 0, 0]], prototypes)
    assert all(torch.isfinite(part).all() for part in torch.autograd.grad(loss, (image, text, prototypes)))


def test_sinkhorn_gives_every_prototype_about_the_same_by_hand():
    # Both rows prefer the first column nine to one and eight to two; in the end each column must have one of two.
    logits = torch.tensor([[0.9, 0.1], [0.8, 0.2]], dtype=torch.float64).log()
    torch.testing.assert_close(sinkhorn(logits, 0), logits.exp())
    first = torch.tensor([[0.9 / 1.7, 0.1 / 0.3], [0.8 / 1.7, 0.2 / 0.3]], dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(logits, 1), first / first.sum(dim=1, keepdim=True))
    torch.testing.assert_close(sinkhorn(logits, 50).sum(dim=0), torch.ones(2, dtype=torch.float64))


def test_sinkhorn_is_finite_where_exponentials_are_not_and_lets_no_gradient_through():
    image = (1000 * torch.randn(4, 6, generator=torch.Generator().manual_seed(0))).requires_grad_()
    shares = sinkhorn(image)
    assert not shares.requires_grad
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(4))


def test_prototypes_are_normalised_in_place():
    prototypes = torch.nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    normalise_rows_(prototypes)
    assert prototypes.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]]
    assert prototypes.requires_grad


def test_half_precision_is_compared_in_float32():
    words, patches, mask, word_weights, patch_weights = (part.detach() for part in tokens(dtype=torch.float32))
    words, patches = words.bfloat16(), patches.bfloat16()
    image, text, prototypes = (part.detach().bfloat16() for part in pairs_of(count=3))

    def losses(*parts):
        w, p, i, t, c = parts
        return token_loss(w, p, mask, word_weights, patch_weights), prototype_loss(i, t, c), instance_loss(i, t)

    given = (words, patches, image, text, prototypes)
    outside = losses(*(part.float() for part in given))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = losses(*given)
    assert [loss.dtype for loss in inside] == 3 * [torch.float32]
    assert [loss.item() for loss in inside] == [loss.item() for loss in outside]


def attended(rows):
    """Attention of one head whose [CLS] row is given."""
    attention = torch.zeros(len(rows), 1, len(rows[0]), len(rows[0]), dtype=torch.float64)
    attention[:, 0, 0] = torch.tensor(rows, dtype=torch.float64)
    return attention


def test_word_weights_by_hand():
    # [CLS] pneumo ##nia is seen [SEP] [PAD]: the pieces of a word are added, and 0.1, 0.1, 0.1 and 0.5 are left.
    attention = attended([[0.2, 0.06, 0.04, 0.1, 0.1, 0.5, 0.0]])
    word_of_token = torch.tensor([[-1, 0, 0, 1, 2, 3, -1]])
    high = 0.1 + 0.7 * 0.4  # the 90th percentile of four lies at 2.7 of 3
    expected = torch.tensor([[0.1, 0.1, 0.1, high, 0]], dtype=torch.float64) / (0.3 + high)
    torch.testing.assert_close(attention_of_words(attention, word_of_token, 5), expected)


def test_shifted_weights_are_those_of_the_next_token_by_hand():
    attention = attended([[0.2, 0.06, 0.04, 0.1, 0.1, 0.5, 0.0]])
    word_of_token = torch.tensor([[-1, 0, 0, 1, 2, 3, -1]])
    # "pneumonia" has what ##nia and "is" have, "seen" what [SEP] has, and [SEP] nothing: it is not even clipped.
    low, high = 0.1 + 0.2 * 0.04, 0.14 + 0.8 * 0.36
    expected = torch.tensor([[0.14, low, high, 0, 0]], dtype=torch.float64) / (0.14 + low + high)
    torch.testing.assert_close(attention_of_words(attention, word_of_token, 5, shifted=True), expected)


def test_shifted_weights_are_those_of_the_released_loop():
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(2, 3, 9, 9, generator=generator, dtype=torch.float64).softmax(dim=-1)
    pieces = [["cls", "a", "##b", "c", "d", "##e", "##f", "sep"], ["cls", "a", "b", "sep"]]
    attention[1, :, 0, 4:] = 0  # no attention to padding
    word_of_token, expected = torch.full((2, 9), -1), []
    for row, text in enumerate(pieces):
        slot, sums = -1, []
        # What is looked at starts at the second token, and is paired with the first.
        for place, (piece, looked) in enumerate(zip(text, attention[row, :, 0, 1:].mean(dim=0), strict=False)):
            if piece.startswith("##"):
                sums[-1] = sums[-1] + looked
            else:
                sums.append(looked)
                slot += 1
            word_of_token[row, place] = slot - 1
        sums = torch.stack([*sums[1:], *[torch.zeros(()).double()] * (8 - len(sums) + 1)])
        real = sums.nonzero().squeeze()
        sums[real] = sums[real].clip(torch.quantile(sums[real], 0.1), torch.quantile(sums[real], 0.9))
        expected.append(sums / sums.sum())
    torch.testing.assert_close(attention_of_words(attention, word_of_token, 8, shifted=True), torch.stack(expected))


def test_heads_are_averaged_without_gradient():
    attention = torch.rand(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    word_of_token = torch.tensor([[-1, 0, 1, 2]])
    both = attention_of_words(attention, word_of_token, 3)
    torch.testing.assert_close(both, attention_of_words(attention.mean(dim=1, keepdim=True), word_of_token, 3))
    assert not both.requires_grad
    assert not attention_of_patches(attention).requires_grad


def test_a_text_without_words_has_no_weight():
    attention = attended([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    weights = attention_of_words(attention, torch.tensor([[-1, 0, -1], [-1, -1, -1]]), 2)
    assert weights.tolist() == [[1, 0], [0, 0]]


def test_patch_weights_by_hand():
    weights = attention_of_patches(attended([[0.3, 0.1, 0.1, 0.1, 0.4]]))
    high = 0.1 + 0.7 * 0.3
    torch.testing.assert_close(weights, torch.tensor([[0.1, 0.1, 0.1, high]], dtype=torch.float64) / (0.3 + high))
    registers = attention_of_patches(attended([[0.3, 0.9, 0.1, 0.1, 0.1, 0.4]]), first=2)
    torch.testing.assert_close(registers, weights)


def test_inconsistent_shapes_are_refused():
    words, patches, mask, word_weights, patch_weights = tokens()
    empty = mask & torch.tensor([True, False, True])[:, None]
    with pytest.raises(ValueError, match="text 1 has no word"):
        token_loss(words, patches, empty, word_weights, patch_weights)
    with pytest.raises(ValueError, match="as many pairs and the same width"):
        token_loss(words, patches[:2], mask, word_weights, patch_weights)
    with pytest.raises(ValueError, match="one value per slot"):
        token_loss(words, patches, mask, word_weights[:, :2], patch_weights)
    with pytest.raises(ValueError, match="one value per patch"):
        token_loss(words, patches, mask, word_weights, patch_weights[:, :2])
    with pytest.raises(ValueError, match="at least one pair"):
        token_loss(*(part[:0] for part in tokens()))
    image, text, prototypes = pairs_of()
    with pytest.raises(ValueError, match="one row per pair, or prototype"):
        prototype_loss(image, text[:2], prototypes)
    with pytest.raises(ValueError, match="slot 3; there are 3 slots"):
        attention_of_words(torch.rand(1, 1, 2, 2), torch.tensor([[-1, 3]]), 3)
