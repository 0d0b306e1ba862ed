"""Semantic matching by hand, against a loop, and edge cases."""

import math

import pytest
import torch
from torch.nn import functional as F

from cleft.models.methods.medclip import label_similarity, semantic_matching

SCALE = torch.tensor(3.0, dtype=torch.float64)


def batch(images=4, texts=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image, text, augmented = (
        torch.randn(count, 5, generator=generator, dtype=torch.float64).requires_grad_()
        for count in (images, texts, texts)
    )
    labels = [torch.randint(-1, 2, (count, 6), generator=generator).double() for count in (images, texts)]
    return image, text, augmented, *labels


def in_a_loop(image, text, scale, image_labels, text_labels):
    """The formula of both directions, one element at a time."""
    common = [[sum(a * b for a, b in zip(one, other, strict=True)) for other in text_labels] for one in image_labels]
    logits = [[scale * torch.cosine_similarity(one, other, dim=0) for other in text] for one in image]
    loss = 0
    for rows, scores in ((common, logits), (list(zip(*common, strict=True)), list(zip(*logits, strict=True)))):
        for shared, row in zip(rows, scores, strict=True):
            for j in range(len(row)):
                target = shared[j].exp() / sum(s.exp() for s in shared)
                loss = loss - target * (row[j].exp() / sum(s.exp() for s in row)).log() / len(rows) / 2
    return loss


def test_one_finding_in_common_by_hand():
    labels = torch.eye(2)
    # Targets are e / (e + 1) and 1 / (e + 1), and so are the answers: the loss is their entropy.
    own = math.e / (math.e + 1)
    entropy = -own * math.log(own) - (1 - own) * math.log(1 - own)
    assert semantic_matching(torch.eye(2), torch.eye(2), torch.tensor(1.0), labels, labels).item() == pytest.approx(
        entropy
    )


def test_common_findings_are_counted_or_normalised():
    one, three = torch.tensor([[1.0, 0, 0]]), torch.tensor([[1.0, 1, 1]])
    assert label_similarity(three, torch.cat([one, three])).tolist() == [[1, 3]]
    torch.testing.assert_close(
        label_similarity(three, torch.cat([one, three]), similarity="cosine"), torch.tensor([[1 / math.sqrt(3), 1]])
    )


def test_an_absent_finding_opposes_a_present_one_and_an_unmentioned_one_counts_nothing():
    labels = torch.tensor([[1.0], [-1.0], [0.0], [math.nan]])
    for similarity in ("dot", "cosine"):
        assert label_similarity(labels, labels, similarity=similarity).tolist() == [
            [1, -1, 0, 0],
            [-1, 1, 0, 0],
            [0, 0, 0, 0],
            [0, 0, 0, 0],
        ]


@pytest.mark.parametrize("texts", [4, 3])
def test_value_and_gradient_are_those_of_the_loop(texts):
    image, text, augmented, image_labels, text_labels = batch(texts=texts)
    scale = SCALE.clone().requires_grad_()
    short = sum(semantic_matching(image, texts, scale, image_labels, text_labels) for texts in (text, augmented)) / 2
    long = sum(in_a_loop(image, texts, scale, image_labels, text_labels) for texts in (text, augmented)) / 2
    inputs = (image, text, augmented, scale)
    torch.testing.assert_close(short, long)
    torch.testing.assert_close(torch.autograd.grad(short, inputs), torch.autograd.grad(long, inputs))


def test_cosine_targets_use_normalised_labels():
    image, text, _, image_labels, text_labels = batch()
    unit = [F.normalize(labels, dim=-1) for labels in (image_labels, text_labels)]
    torch.testing.assert_close(
        semantic_matching(image, text, SCALE, image_labels, text_labels, similarity="cosine"),
        semantic_matching(image, text, SCALE, *unit),
    )


def test_order_of_images_and_texts_does_not_matter():
    image, text, _, image_labels, text_labels = batch()
    one, other = torch.tensor([2, 0, 3, 1]), torch.tensor([3, 1, 0, 2])
    torch.testing.assert_close(
        semantic_matching(image[one], text[other], SCALE, image_labels[one], text_labels[other]),
        semantic_matching(image, text, SCALE, image_labels, text_labels),
    )


def test_without_findings_all_texts_have_equal_targets():
    image, text, _, labels, _ = batch()
    loss = semantic_matching(image, text, 0 * SCALE, 0 * labels, 0 * labels)
    assert loss.item() == pytest.approx(math.log(4))


def test_equal_captions_share_their_target():
    image, _, _, image_labels, text_labels = batch()
    text = image.detach()[:1].expand(4, -1)
    loss = semantic_matching(image, text, SCALE, image_labels, text_labels[:1].expand(4, -1))
    assert torch.isfinite(torch.autograd.grad(loss, image)[0]).all()
    assert loss.item() >= math.log(4) / 2


def test_a_single_image_and_text_have_no_loss():
    image, text, _, image_labels, text_labels = batch(images=1, texts=1)
    assert semantic_matching(image, text, SCALE, image_labels, text_labels).item() == 0


def test_half_precision_is_compared_in_float32():
    image, text, _, image_labels, text_labels = (part.detach().bfloat16() for part in batch())
    outside = semantic_matching(image.float(), text.float(), SCALE.float(), image_labels, text_labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = semantic_matching(image, text, SCALE.float(), image_labels, text_labels)
    assert inside.dtype == torch.float32
    assert inside.item() == outside.item()


def test_inconsistent_shapes_are_refused():
    image, text, _, image_labels, text_labels = batch()
    with pytest.raises(ValueError, match="one row per image and text; there are 4 and 3"):
        semantic_matching(image, text[:3], SCALE, image_labels, text_labels)
    with pytest.raises(ValueError, match="the same findings"):
        semantic_matching(image, text, SCALE, image_labels, text_labels[:, :2])
