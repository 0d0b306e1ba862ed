"""Losses and areas by hand, for classes and for findings of which not all are known."""

import math

import pytest
import torch

from cleft.training.criteria import cross_entropy, mean_auc

NAN = math.nan


def test_the_loss_of_equal_logits_is_the_logarithm_of_the_choices():
    assert cross_entropy(torch.zeros(4, 5), torch.tensor([0, 1, 2, 4])).item() == pytest.approx(math.log(5))
    findings = torch.tensor([[1.0, NAN], [0.0, 1.0]])
    assert cross_entropy(torch.zeros(2, 2), findings).item() == pytest.approx(math.log(2))


def test_what_is_not_known_has_no_loss_and_no_gradient():
    logits = torch.tensor([[2.0, 50.0], [-2.0, 1.0]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([[1.0, NAN], [0.0, NAN]]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[:, 1].tolist() == [0.0, 0.0]


def test_the_area_counts_pairs_and_takes_the_mean_over_classes():
    logits = torch.tensor([[3.0, 0.0], [1.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    assert mean_auc(logits, torch.tensor([0, 0, 1, 1])) == pytest.approx(3 / 4)
    findings = torch.tensor([[1.0, 1.0], [0.0, 0.0], [NAN, 1.0], [0.0, 1.0]])
    assert mean_auc(logits, findings) == pytest.approx((1.0 + 0.5) / 2)


def test_classes_that_are_only_shown_or_never_shown_have_no_area():
    assert mean_auc(torch.randn(3, 2), torch.tensor([1, 1, 1])) is None
    logits = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    assert mean_auc(logits, torch.tensor([[0.0, 1.0], [1.0, NAN]])) == 1.0


def test_areas_are_those_of_the_report():
    import numpy as np

    from cleft.evaluation.metrics import auc, value_of

    torch.manual_seed(0)
    logits, targets = torch.randn(60, 2), torch.randint(0, 2, (60,))
    ours = value_of(auc((logits[:, 1] - logits[:, 0]).double().numpy(), np.asarray(targets) == 1), 60)
    assert mean_auc(logits, targets) == pytest.approx(ours)
