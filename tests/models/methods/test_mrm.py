"""Reconstruction of images and reports by hand, against a loop, and edge cases."""

import math

import pytest
import torch

from cleft.models.methods.mrm import image_reconstruction, report_reconstruction, target_patches


def painted(seed=0):
    generator = torch.Generator().manual_seed(seed)
    pred, target = torch.randn(2, 3, 4, 12, generator=generator, dtype=torch.float64)
    return pred.requires_grad_(), target, torch.rand(3, 4, generator=generator) < 0.75


def said(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 5, 7, generator=generator, dtype=torch.float64).requires_grad_()
    return logits, torch.randint(7, (3, 5), generator=generator), torch.rand(3, 5, generator=generator) < 0.5


def test_patches_come_row_by_row_with_the_channels_of_a_pixel_together():
    images = torch.arange(3 * 4 * 4).view(1, 3, 4, 4)
    patches = target_patches(images, patch_size=2)
    # Channels lie 16 apart; the second patch starts at column 2, the third at row 2.
    assert patches[0, 0].tolist() == [0, 16, 32, 1, 17, 33, 4, 20, 36, 5, 21, 37]
    assert patches[0, :, 0].tolist() == [0, 2, 8, 10]


def test_an_input_patch_of_16_pixels_at_224_is_a_target_of_32_at_448():
    assert target_patches(torch.zeros(2, 3, 448, 448)).shape == (2, 196, 3072)


def test_one_channel_is_repeated_three_times():
    grey = torch.randn(2, 1, 8, 8)
    assert torch.equal(target_patches(grey, patch_size=4), target_patches(grey.repeat(1, 3, 1, 1), patch_size=4))


def test_the_error_of_one_hidden_patch_by_hand():
    target = torch.tensor([[[1.0, 3.0], [5.0, 5.0]]])
    masked = torch.tensor([[True, False]])
    # Mean 2 and variance 2 make -1 and 1 of 1 and 3, divided by the root of 2.
    pred = torch.tensor([[[0.0, 0.0], [9.0, 9.0]]])
    assert image_reconstruction(pred, target, masked).item() == pytest.approx(0.5)
    assert image_reconstruction(pred, target, masked, standardise=False).item() == pytest.approx((1 + 9) / 2)


def test_the_error_of_zeros_is_nearly_one():
    _, target, masked = painted()
    assert image_reconstruction(0 * target, target, masked).item() == pytest.approx(11 / 12, rel=1e-4)


def test_a_patch_of_a_single_grey_becomes_zeros():
    grey = torch.full((1, 1, 12), 0.7)
    assert image_reconstruction(torch.zeros(1, 1, 12), grey, torch.tensor([[True]])).item() == pytest.approx(
        0, abs=1e-6
    )


def test_value_and_gradient_of_the_image_are_those_of_the_loop():
    pred, target, masked = painted()
    terms = []
    for i in range(3):
        for p in range(4):
            if masked[i, p]:
                mean = sum(target[i, p]) / 12
                variance = sum((value - mean) ** 2 for value in target[i, p]) / 11
                wanted = [(value - mean) / (variance + 1e-6) ** 0.5 for value in target[i, p]]
                terms.append(sum((a - b) ** 2 for a, b in zip(pred[i, p], wanted, strict=True)) / 12)
    short, long = image_reconstruction(pred, target, masked), sum(terms) / len(terms)
    torch.testing.assert_close(short, long)
    torch.testing.assert_close(torch.autograd.grad(short, pred), torch.autograd.grad(long, pred))


@pytest.mark.parametrize("where", ["masked", "all"])
def test_value_and_gradient_of_the_report_are_those_of_the_loop(where):
    logits, ids, masked = said()
    terms = [
        -(logits[i, k, ids[i, k]].exp() / sum(s.exp() for s in logits[i, k])).log()
        for i in range(3)
        for k in range(5)
        if where == "all" or masked[i, k]
    ]
    short, long = report_reconstruction(logits, ids, masked, where=where), sum(terms) / len(terms)
    torch.testing.assert_close(short, long)
    torch.testing.assert_close(torch.autograd.grad(short, logits), torch.autograd.grad(long, logits))


def test_visible_words_dilute_the_released_loss_by_hand():
    # One hidden token at chance, three seen ones that are certain.
    logits = torch.tensor([[[0.0, 0.0], [0.0, 99.0], [99.0, 0.0], [99.0, 0.0]]])
    ids, masked = torch.tensor([[1, 1, 0, 0]]), torch.tensor([[True, False, False, False]])
    assert report_reconstruction(logits, ids, masked).item() == pytest.approx(math.log(2))
    assert report_reconstruction(logits, ids, masked, where="all").item() == pytest.approx(math.log(2) / 4)


def test_visible_patches_and_words_do_not_matter():
    pred, target, masked = painted()
    spoiled = pred.where(masked[..., None], torch.nan)
    torch.testing.assert_close(
        image_reconstruction(spoiled, target, masked), image_reconstruction(pred, target, masked)
    )
    logits, ids, seen = said()
    spoiled = logits.where(seen[..., None], torch.nan)
    torch.testing.assert_close(report_reconstruction(spoiled, ids, seen), report_reconstruction(logits, ids, seen))


def test_order_of_pairs_and_patches_does_not_matter():
    pred, target, masked = painted()
    order, spots = torch.tensor([1, 2, 0]), torch.tensor([3, 1, 0, 2])
    moved = (part[order][:, spots] for part in (pred, target, masked))
    torch.testing.assert_close(image_reconstruction(*moved), image_reconstruction(pred, target, masked))


def test_without_masking_there_is_no_loss():
    pred, target, masked = painted()
    loss = image_reconstruction(pred, target, torch.zeros_like(masked))
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, pred)[0].any()
    logits, ids, hidden = said()
    loss = report_reconstruction(logits, ids, torch.zeros_like(hidden))
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, logits)[0].any()


def test_half_precision_is_compared_in_float32():
    pred, target, masked = (part.detach() for part in painted())
    logits, ids, hidden = (part.detach() for part in said())
    pred, target, logits = pred.bfloat16(), target.bfloat16(), logits.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = image_reconstruction(pred, target, masked), report_reconstruction(logits, ids, hidden)
    assert [loss.dtype for loss in inside] == [torch.float32, torch.float32]
    assert inside[0].item() == image_reconstruction(pred.float(), target.float(), masked).item()
    assert inside[1].item() == report_reconstruction(logits.float(), ids, hidden).item()


def test_inconsistent_shapes_are_refused():
    with pytest.raises(ValueError, match="a multiple of 32"):
        target_patches(torch.zeros(1, 3, 40, 40))
    with pytest.raises(ValueError, match="1 or 3"):
        target_patches(torch.zeros(1, 2, 32, 32))
    with pytest.raises(ValueError, match="one value per patch"):
        image_reconstruction(torch.zeros(1, 4, 3), torch.zeros(1, 4, 3), torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="same reports and positions"):
        report_reconstruction(torch.zeros(1, 4, 3), torch.zeros(1, 3).long(), torch.ones(1, 3, dtype=torch.bool))
