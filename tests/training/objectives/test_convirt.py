"""ConVIRT's loss by hand, as a loop over pairs, and at the edges."""

import math

import pytest
import torch
from torch.nn import functional as F

from cleft.training.losses import info_nce
from cleft.training.objectives.convirt import convirt_loss


def pairs(size=5, width=7, seed=0):
    drawn = torch.randn(2, size, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return tuple(part.clone().requires_grad_() for part in drawn)


def in_a_loop(image, text, temperature, share):
    """The formula, one pair at a time."""
    losses = []
    for i in range(len(image)):
        forth = [torch.cosine_similarity(image[i], text[k], dim=0) / temperature for k in range(len(text))]
        back = [torch.cosine_similarity(text[i], image[k], dim=0) / temperature for k in range(len(text))]
        losses.append(
            -share * (forth[i].exp() / sum(s.exp() for s in forth)).log()
            - (1 - share) * (back[i].exp() / sum(s.exp() for s in back)).log()
        )
    return sum(losses) / len(losses)


def test_two_orthogonal_pairs_by_hand():
    loss = convirt_loss(torch.eye(2), 3 * torch.eye(2), temperature=0.5)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_the_direction_from_image_to_text_weighs_three_times_the_other_by_hand():
    image, text = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.eye(2)
    # Each image finds the first text: e and 1 are the weights of its answers. The texts cannot tell the images apart.
    forth = (math.log(1 + 1 / math.e) + math.log(1 + math.e)) / 2
    assert convirt_loss(image, text, temperature=1.0).item() == pytest.approx(0.75 * forth + 0.25 * math.log(2))


@pytest.mark.parametrize("share", [0.0, 0.75, 1.0])
def test_value_and_gradient_are_those_of_the_loop(share):
    image, text = pairs()
    short = convirt_loss(image, text, temperature=0.3, image_to_text=share)
    long = in_a_loop(image, text, 0.3, share)
    torch.testing.assert_close(short, long)
    torch.testing.assert_close(torch.autograd.grad(short, (image, text)), torch.autograd.grad(long, (image, text)))


def test_with_equal_shares_it_is_info_nce_of_unit_vectors():
    image, text = (F.normalize(part, dim=-1).float() for part in pairs())
    plain = info_nce(image, text, torch.tensor(10.0))
    torch.testing.assert_close(convirt_loss(image, text, image_to_text=0.5), plain)


def test_order_and_length_do_not_matter():
    image, text = pairs()
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(convirt_loss(image[order], 9 * text[order]), convirt_loss(image, text))


def test_a_hot_temperature_forgets_the_cosines_and_a_cold_one_the_pairs_that_are_found():
    image, text = pairs()
    assert convirt_loss(image, text, temperature=1e9).item() == pytest.approx(math.log(5))
    assert convirt_loss(image, image, temperature=1e-3).item() == pytest.approx(0, abs=1e-9)


def test_equal_captions_keep_the_loss_above_their_entropy():
    image = torch.eye(4, requires_grad=True)
    loss = convirt_loss(image, image.detach()[[0, 0, 0, 3]], image_to_text=1.0)
    assert loss.item() >= 3 / 4 * math.log(3)
    assert torch.isfinite(torch.autograd.grad(loss, image)[0]).all()


def test_a_single_pair_has_nothing_to_be_told_apart_from():
    image, text = pairs(size=1)
    loss = convirt_loss(image, text)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, image)[0].any()


def test_a_vector_of_zeros_is_finite():
    image, text = pairs()
    loss = convirt_loss(image * torch.tensor([0, 1, 1, 1, 1])[:, None], text)
    assert torch.isfinite(torch.autograd.grad(loss, image)[0]).all()


def test_half_precision_is_compared_in_float32():
    image, text = (part.detach().bfloat16() for part in pairs())
    outside = convirt_loss(image.float(), text.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = convirt_loss(image, text)
    assert inside.dtype == torch.float32
    assert inside.item() == outside.item()


def test_rows_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="one text per image"):
        convirt_loss(torch.ones(3, 2), torch.ones(2, 2))
    with pytest.raises(ValueError, match="same width"):
        convirt_loss(torch.ones(3, 2), torch.ones(3, 4))
    with pytest.raises(ValueError, match="at least one image and one text"):
        convirt_loss(torch.ones(0, 2), torch.ones(0, 2))
