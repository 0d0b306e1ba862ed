"""Losses by hand, by symmetry, and at the limits of float32."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from cleft.models.methods.losses import (
    LOSSES,
    convirt_loss,
    info_nce,
    label_aware_nce,
    overlap,
    sigmoid,
    soft_overlap_nce,
)

SCALE = torch.tensor(14.0)


@st.composite
def batches(draw):
    """L2-normalised pairs with repeated captions and labels."""
    size = draw(st.integers(2, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    image, text = F.normalize(torch.randn(2, size, 5, generator=generator), dim=-1)
    caption_ids = torch.randint(0, 3, (size,), generator=generator)
    labels = torch.randint(-1, 2, (size, 3), generator=generator).float()
    return image, text, caption_ids, labels


def value(name, image, text, caption_ids, labels, scale=SCALE):
    return LOSSES[name](image, text, scale, caption_ids=caption_ids, labels=labels)


def test_info_nce_of_equal_embeddings_is_log_batch():
    embeds = torch.ones(4, 8) / math.sqrt(8)
    assert info_nce(embeds, embeds, SCALE).item() == pytest.approx(math.log(4))


def test_info_nce_of_two_orthogonal_pairs_by_hand():
    embeds = torch.eye(2)
    assert info_nce(embeds, embeds, torch.tensor(1.0)).item() == pytest.approx(math.log(1 + math.exp(-1)))


def test_a_row_with_the_same_caption_is_no_negative():
    image = torch.eye(3)
    text = torch.stack([image[0], image[0], image[2]])
    loss = label_aware_nce(image, text, torch.tensor(1.0), caption_ids=torch.tensor([7, 7, 9]))
    e = math.e  # logits are 1 where an image meets its own axis and 0 elsewhere
    i2t = (math.log(1 + 1 / e) + math.log(2) + math.log(1 + 2 / e)) / 3
    t2i = (2 * (math.log(1 + 1 / e) + math.log(2)) / 2 + math.log(1 + 2 / e)) / 3
    assert loss.item() == pytest.approx((i2t + t2i) / 2)


def test_sharing_targets_among_equal_captions_equals_info_nce():
    generator = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(4, 3, generator=generator), dim=-1).requires_grad_()
    text = F.normalize(torch.randn(2, 3, generator=generator), dim=-1)[[0, 0, 0, 1]]
    shares = torch.block_diag(torch.full((3, 3), 1 / 3), torch.ones(1, 1))
    logits = SCALE * image @ text.T
    shared = (F.cross_entropy(logits, shares) + F.cross_entropy(logits.T, shares)) / 2
    plain = info_nce(image, text, SCALE)
    torch.testing.assert_close(shared, plain)
    torch.testing.assert_close(torch.autograd.grad(shared, image), torch.autograd.grad(plain, image))
    aware = label_aware_nce(image, text, SCALE, caption_ids=torch.tensor([0, 0, 0, 1]))
    assert aware.item() < plain.item() - 0.1


def test_overlap_of_findings_increases_the_target():
    labels = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 0, 0], [-1, 0, 0], [float("nan"), 0, 0]])
    assert overlap(labels)[0].tolist() == [1, 1, 0.5, 0, 0]
    assert overlap(labels)[3:].tolist() == [[0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]


@given(batches())
@settings(max_examples=30, deadline=None)
def test_without_overlap_all_losses_equal_info_nce(batch):
    image, text, _, _ = batch
    plain = info_nce(image, text, SCALE)
    own = torch.arange(len(image))
    torch.testing.assert_close(label_aware_nce(image, text, SCALE, caption_ids=own), plain)
    torch.testing.assert_close(soft_overlap_nce(image, text, SCALE, labels=torch.eye(len(image))), plain)


@pytest.mark.parametrize("name", LOSSES)
@given(batch=batches(), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_the_order_of_pairs_and_a_common_rotation_do_not_matter(name, batch, seed):
    image, text, ids, labels = batch
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(image), generator=generator)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator))[0]
    before = value(name, image, text, ids, labels)
    torch.testing.assert_close(value(name, image[order], text[order], ids[order], labels[order]), before)
    torch.testing.assert_close(value(name, image @ turn, text @ turn, ids, labels), before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
@given(batch=batches())
@settings(max_examples=30, deadline=None)
def test_losses_are_symmetric_in_the_towers_and_never_negative(name, batch):
    image, text, ids, labels = batch
    loss = value(name, image, text, ids, labels)
    torch.testing.assert_close(value(name, text, image, ids, labels), loss)
    assert loss >= 0


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e15])
def test_value_and_gradient_are_finite_from_zero_to_huge(name, size):
    image = (torch.randn(4, 6, generator=torch.Generator().manual_seed(0)) * size).requires_grad_()
    text = (torch.randn(4, 6, generator=torch.Generator().manual_seed(1)) * size).requires_grad_()
    loss = value(name, image, text, torch.tensor([0, 0, 1, 2]), torch.zeros(4, 3), torch.tensor(100.0))
    gradients = torch.autograd.grad(loss, [image, text])
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_g6_a_batch_of_one_caption_is_finite_for_every_loss():
    image = F.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), dim=-1).requires_grad_()
    text = image.detach()[:1].expand(5, -1)
    ids, labels = torch.zeros(5, dtype=torch.long), torch.ones(5, 2)
    losses = {name: value(name, image, text, ids, labels) for name in LOSSES}
    assert losses["label_aware_nce"].item() == 0
    assert losses["info_nce"].item() >= math.log(5)
    torch.testing.assert_close(losses["soft_overlap_nce"], losses["info_nce"])
    for loss in losses.values():
        assert torch.isfinite(torch.autograd.grad(loss, image, retain_graph=True)[0]).all()


def test_g11_similarities_are_compared_in_float32_inside_autocast():
    image = F.normalize(torch.randn(8, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    outside = info_nce(image, image, SCALE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = info_nce(image, image, SCALE)
    assert inside.dtype == torch.float32
    assert inside.item() == outside.item()


def test_the_sigmoid_loss_of_two_orthogonal_pairs_by_hand():
    embeds = torch.eye(2)
    scale, bias = torch.tensor(2.0), torch.tensor(-1.0)
    yes, no = math.log(1 + math.exp(-(2 - 1))), math.log(1 + math.exp(0 - 1))
    assert sigmoid(embeds, embeds, scale, logit_bias=bias).item() == pytest.approx(yes + no)


@given(batches())
@settings(max_examples=30, deadline=None)
def test_the_sigmoid_loss_is_a_binary_cross_entropy_of_every_pair(batch):
    image, text, _, _ = batch
    bias = torch.tensor(-3.0, requires_grad=True)
    short = sigmoid(image, text, SCALE, logit_bias=bias)
    logits = SCALE * image @ text.T + bias
    long = F.binary_cross_entropy_with_logits(logits, torch.eye(len(image)), reduction="sum") / len(image)
    torch.testing.assert_close(short, long)
    torch.testing.assert_close(torch.autograd.grad(short, bias), torch.autograd.grad(long, bias))


def test_rows_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="same width"):
        info_nce(torch.ones(3, 2), torch.ones(2, 2), SCALE)
    with pytest.raises(ValueError, match="caption_ids"):
        label_aware_nce(torch.ones(3, 2), torch.ones(3, 2), SCALE, caption_ids=torch.zeros(2))


def test_the_authors_loss_is_twice_ours(shared):
    stored = np.load(shared / "fixtures/official/official-lora.npz")
    image, text = torch.from_numpy(stored["image_embeds"]), torch.from_numpy(stored["text_embeds"])
    scale = torch.tensor(1 / 0.07)
    assert 2 * info_nce(image, text, scale).item() == pytest.approx(float(stored["loss"]), abs=1e-5)


def test_label_aware_nce_compares_each_positive_with_the_negatives_of_its_own_row():
    image, text = (F.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(s))) for s in (1, 2))
    captions, scale = [0, 0, 1, 0, 1], 3.0
    expected = 0.0
    for logits in (scale * image @ text.T, scale * text @ image.T):
        for row in range(5):
            positives = [column for column in range(5) if captions[column] == captions[row]]
            negatives = sum(math.exp(logits[row, c]) for c in range(5) if captions[c] != captions[row])
            values = [math.log1p(negatives / math.exp(logits[row, column])) for column in positives]
            expected += sum(values) / len(values) / 10
    loss = label_aware_nce(image, text, torch.tensor(scale), caption_ids=torch.tensor(captions))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


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


def test_image_to_text_has_three_times_the_weight_by_hand():
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


def test_equal_weights_give_info_nce_of_normalised_vectors():
    image, text = (F.normalize(part, dim=-1).float() for part in pairs())
    plain = info_nce(image, text, torch.tensor(10.0))
    torch.testing.assert_close(convirt_loss(image, text, image_to_text=0.5), plain)


def test_order_and_norm_do_not_matter():
    image, text = pairs()
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(convirt_loss(image[order], 9 * text[order]), convirt_loss(image, text))


def test_a_high_temperature_flattens_and_a_low_one_saturates_the_loss():
    image, text = pairs()
    assert convirt_loss(image, text, temperature=1e9).item() == pytest.approx(math.log(5))
    assert convirt_loss(image, image, temperature=1e-3).item() == pytest.approx(0, abs=1e-9)


def test_equal_captions_keep_the_loss_above_their_entropy():
    image = torch.eye(4, requires_grad=True)
    loss = convirt_loss(image, image.detach()[[0, 0, 0, 3]], image_to_text=1.0)
    assert loss.item() >= 3 / 4 * math.log(3)
    assert torch.isfinite(torch.autograd.grad(loss, image)[0]).all()


def test_a_single_pair_has_no_loss():
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


def test_convirt_refuses_rows_that_do_not_match():
    with pytest.raises(ValueError, match="one text per image"):
        convirt_loss(torch.ones(3, 2), torch.ones(2, 2))
    with pytest.raises(ValueError, match="same width"):
        convirt_loss(torch.ones(3, 2), torch.ones(3, 4))
    with pytest.raises(ValueError, match="at least one image and one text"):
        convirt_loss(torch.ones(0, 2), torch.ones(0, 2))
