"""GLoRIA's two losses and its zero-shot score: by hand, against the released loop, and edge cases."""

import math

import pytest
import torch

from cleft.models.methods.gloria import global_loss, local_loss, local_similarity, word_cosines


def batch(images=4, counts=(3, 1, 5, 2), spots=6, width=7, seed=0, dtype=torch.float64):
    """Features of some images and texts; padding slots contain numbers to detect their use."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    mask = torch.arange(max(counts) + 1)[None] < torch.tensor(counts)[:, None]
    return (
        draw(images, width),
        draw(len(counts), width),
        draw(images, spots, width),
        draw(len(counts), max(counts) + 1, width),
        mask,
    )


def both_losses(image, text, regions, words, mask, *, text_of=None):
    return global_loss(image, text, text_of=text_of) + local_loss(regions, words, mask, text_of=text_of)


def cosine_in_a_loop(regions, words):
    """Cosine of each word of one text with its context in one image, from the formulas."""
    spots, count = len(regions), len(words)
    share = [[None] * count for _ in range(spots)]
    for m in range(spots):
        weights = [(regions[m] @ words[w]).exp() for w in range(count)]
        for w in range(count):
            share[m][w] = weights[w] / sum(weights)
    cosines = []
    for w in range(count):
        weights = [(4 * share[m][w]).exp() for m in range(spots)]
        context = sum(weights[m] / sum(weights) * regions[m] for m in range(spots))
        cosines.append(context @ words[w] / (context.norm() * words[w].norm()))
    return cosines


def both_directions_in_a_loop(similarity):
    loss = 0
    for i in range(len(similarity)):
        for row in (similarity[i], [line[i] for line in similarity]):
            loss = loss - (row[i].exp() / sum(s.exp() for s in row)).log() / len(similarity)
    return loss


def local_in_a_loop(regions, words, mask):
    return both_directions_in_a_loop(
        [
            [
                10 * sum((5 * cosine).exp() for cosine in cosine_in_a_loop(image, text[real])).log()
                for text, real in zip(words, mask, strict=True)
            ]
            for image in regions
        ]
    )


def test_one_word_attends_to_all_regions_equally_by_hand():
    # Alone in its text, a word gets all of every region: the context is the mean of the regions.
    regions = torch.tensor([[[2.0, 0.0], [0.0, 2.0]]])
    cosine, text_of_word = word_cosines(regions, torch.tensor([[[3.0, 0.0]]]), torch.tensor([[True]]))
    assert cosine.item() == pytest.approx(1 / math.sqrt(2))
    assert text_of_word.tolist() == [0]


def test_two_words_share_two_regions_by_hand():
    regions = torch.eye(2)[None]
    cosine, _ = word_cosines(regions, torch.eye(2)[None], torch.ones(1, 2, dtype=torch.bool))
    # A region's own word gets e / (e + 1) of it, the other the rest; four times that weighs the regions.
    own = math.e / (math.e + 1)
    weight = 1 / (1 + math.exp(4 * (1 - own) - 4 * own))
    expected = weight / math.hypot(weight, 1 - weight)
    torch.testing.assert_close(cosine, torch.full((2, 1), expected))


def test_two_pairs_of_one_word_and_one_region_by_hand():
    features = torch.eye(2)[:, None]  # the only word of a text agrees wholly with one image, and not with the other
    mask = torch.ones(2, 1, dtype=torch.bool)
    assert local_loss(features, features, mask).item() == pytest.approx(2 * math.log(1 + math.exp(-50)))
    assert local_loss(features, features.flip(0), mask).item() == pytest.approx(2 * math.log(1 + math.exp(50)))


def test_the_global_loss_of_two_orthogonal_pairs_by_hand():
    assert global_loss(torch.eye(2), 3 * torch.eye(2)).item() == pytest.approx(
        2 * math.log(1 + math.exp(-10)), abs=1e-6
    )


def test_value_and_gradient_of_the_local_loss_are_those_of_the_loop():
    _, _, regions, words, mask = batch()
    short, long = local_loss(regions, words, mask), local_in_a_loop(regions, words, mask)
    torch.testing.assert_close(short, long)
    torch.testing.assert_close(
        torch.autograd.grad(short, (regions, words)), torch.autograd.grad(long, (regions, words))
    )


def test_value_and_gradient_of_the_sum_are_those_of_the_loop():
    image, text, regions, words, mask = batch()
    short = both_losses(image, text, regions, words, mask)
    long = local_in_a_loop(regions, words, mask) + both_directions_in_a_loop(
        [[10 * torch.cosine_similarity(one, other, dim=0) for other in text] for one in image]
    )
    inputs = (image, text, regions, words)
    torch.testing.assert_close(short, long)
    torch.testing.assert_close(torch.autograd.grad(short, inputs), torch.autograd.grad(long, inputs))


def test_the_hand_written_gradient_equals_finite_differences():
    _, _, regions, words, mask = batch(images=2, counts=(2, 1), spots=3, width=3)
    assert torch.autograd.gradcheck(lambda r, w: word_cosines(r, w, mask)[0], (regions, words))


@pytest.mark.parametrize("held", [1, 30, 100])
def test_processing_texts_in_groups_changes_nothing(held):
    _, _, regions, words, mask = batch()
    whole, parts = local_loss(regions, words, mask), local_loss(regions, words, mask, held=held)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(
        torch.autograd.grad(parts, (regions, words)), torch.autograd.grad(whole, (regions, words))
    )


def test_shared_texts_may_be_given_once():
    image, text, regions, words, mask = batch(images=5)
    text_of = torch.tensor([2, 0, 2, 1, 3])
    once = both_losses(image, text, regions, words, mask, text_of=text_of)
    repeated = both_losses(image, text[text_of], regions, words[text_of], mask[text_of])
    inputs = (image, text, regions, words)
    torch.testing.assert_close(once, repeated)
    torch.testing.assert_close(torch.autograd.grad(once, inputs), torch.autograd.grad(repeated, inputs))


def test_only_equal_captions_give_the_maximum_loss():
    image, text, regions, words, mask = batch(images=3, counts=(4,))
    loss = both_losses(
        image[:1].expand(3, -1), text, regions[:1].expand(3, -1, -1), words, mask, text_of=torch.zeros(3).long()
    )
    assert loss.item() == pytest.approx(4 * math.log(3))


def test_order_of_pairs_words_and_regions_does_not_matter():
    image, text, regions, words, mask = batch()
    order, spots = torch.tensor([2, 3, 0, 1]), torch.tensor([5, 2, 0, 1, 4, 3])
    moved = both_losses(image[order], text[order], regions[order][:, spots], words[order].flip(1), mask[order].flip(1))
    torch.testing.assert_close(moved, both_losses(image, text, regions, words, mask))


def test_padding_values_do_not_matter():
    _, _, regions, words, mask = batch()
    spoiled = torch.where(mask[..., None], words, torch.nan)
    torch.testing.assert_close(local_loss(regions, spoiled, mask), local_loss(regions, words, mask))
    wider = torch.cat([words, words], dim=1), torch.cat([mask, torch.zeros_like(mask)], dim=1)
    torch.testing.assert_close(local_loss(regions, *wider), local_loss(regions, words, mask))


def test_the_norm_of_global_vectors_does_not_matter_but_that_of_local_ones_does():
    image, text, regions, words, mask = batch()
    torch.testing.assert_close(global_loss(7 * image, text / 3), global_loss(image, text))
    assert (local_loss(3 * regions, words, mask) - local_loss(regions, words, mask)).abs() > 0.01


def test_sentences_of_one_word_give_gradients():
    image, text, regions, words, mask = batch(counts=(1, 1, 1, 1))
    loss = both_losses(image, text, regions, words, mask)
    torch.testing.assert_close(local_loss(regions, words, mask), local_in_a_loop(regions, words, mask))
    assert all(gradient.any() for gradient in torch.autograd.grad(loss, (image, text, regions, words)))


def test_a_single_pair_has_no_loss():
    image, text, regions, words, mask = batch(images=1, counts=(3,))
    loss = both_losses(image, text, regions, words, mask)
    assert loss.item() == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, (image, text, regions, words)))


@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e6])
def test_value_and_gradient_are_finite_from_zero_to_huge(size):
    drawn = batch(dtype=torch.float32)
    inputs = [(part * size).detach().requires_grad_() for part in drawn[:4]]
    loss = both_losses(*inputs, drawn[4])
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(loss, inputs))


def test_half_precision_is_compared_in_float32_forth_and_back():
    _, _, regions, words, mask = batch(dtype=torch.float32)
    halves = [part.detach().bfloat16().requires_grad_() for part in (regions, words)]
    outside = local_loss(*(half.float() for half in halves), mask)
    expected = torch.autograd.grad(outside, halves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = local_loss(*halves, mask)
    gradients = torch.autograd.grad(inside, halves)
    assert inside.dtype == torch.float32
    assert inside.item() == outside.item()
    torch.testing.assert_close(gradients, expected, atol=0, rtol=0)


def test_zero_shot_takes_the_best_word():
    _, _, regions, words, mask = batch(images=3)
    similarity = local_similarity(regions, words, mask)
    for i in range(3):
        for j in range(4):
            best = 5 * max(cosine_in_a_loop(regions[i], words[j][mask[j]]))
            torch.testing.assert_close(similarity[i, j], best)


def test_no_image_depends_on_another():
    _, _, regions, words, mask = batch(images=3)
    together = local_similarity(regions, words, mask)
    apart = torch.cat([local_similarity(each[None], words, mask) for each in regions])
    torch.testing.assert_close(together, apart)


def test_counted_slots_of_zeros_bound_the_score_at_zero():
    _, _, regions, _, _ = batch(images=1, counts=(1,))
    against = -regions.mean(dim=1, keepdim=True)  # a single word, and it disagrees with the image
    mask = torch.tensor([[True, True]])
    assert local_similarity(regions, against, mask[:, :1]).item() == pytest.approx(-5)
    assert local_similarity(regions, torch.cat([against, 0 * against], dim=1), mask).item() == pytest.approx(0)


def test_inconsistent_shapes_are_refused():
    _, _, regions, words, mask = batch()
    with pytest.raises(ValueError, match="text 1 has no word"):
        local_loss(regions, words, mask & torch.tensor([True, False, True, True])[:, None])
    with pytest.raises(ValueError, match="same width"):
        local_loss(regions[..., :3], words, mask)
    with pytest.raises(ValueError, match="one value per slot"):
        local_loss(regions, words, mask[:, :2])
    with pytest.raises(ValueError, match="at least one image"):
        local_loss(regions[:0], words, mask)
    with pytest.raises(ValueError, match="one text per image"):
        local_loss(regions[:3], words, mask)
