"""The exact probe is the minimum of what it says it minimises, for classes and for findings."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp

from cleft.config import ClassifyConfig
from cleft.errors import ConfigError, NumericsError
from cleft.training import linear_probe as module
from cleft.training.linear_probe import (
    PENALTIES,
    apply_protocol,
    cross_entropy,
    drop_unused,
    fit_probe,
    mean_auc,
    optimizer_settings,
    uses_solver,
)

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


def test_classes_with_only_positives_or_negatives_have_no_auc():
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


def problem(images=120, classes=3, width=5, seed=0):
    """Features that tell classes apart, but not all of them, on scales of their own."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=draw)
    targets = torch.randint(0, classes, (images,), generator=draw)
    features = centres[targets] + torch.randn(images, width, generator=draw)
    return features * torch.tensor([1.0, 100.0, 0.01, 1.0, 3.0])[:width] + 7, targets


def reference(features, targets, strength, classes):
    """The same head by a general minimiser, on the scaled features."""
    values = features.double().numpy()
    scaled = (values - values.mean(0)) / values.std(0)
    truth = targets.numpy()

    def objective(flat):
        weight, bias = flat[: classes * scaled.shape[1]].reshape(classes, -1), flat[classes * scaled.shape[1] :]
        logits = scaled @ weight.T + bias
        loss = (logsumexp(logits, axis=1) - logits[np.arange(len(truth)), truth]).mean()
        # Two classes are kept as the log-odds of one: half of it each.
        norm = (weight**2).sum() if classes > 2 else ((weight[1] - weight[0]) ** 2).sum()
        return loss + strength / 2 * norm

    found = minimize(objective, np.zeros(classes * (scaled.shape[1] + 1)), tol=1e-12, options={"maxiter": 5000})
    weight, bias = found.x[: classes * scaled.shape[1]].reshape(classes, -1), found.x[classes * scaled.shape[1] :]
    return torch.from_numpy(scaled @ weight.T + bias)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_head_is_the_minimum_that_a_general_method_finds(classes, monkeypatch):
    features, targets = problem(classes=classes)
    monkeypatch.setattr(module, "PENALTIES", (0.01,))
    probe = fit_probe(features, targets, *problem(classes=classes, seed=1), classes=classes, select_by="loss")
    logits = features.double() @ probe.weight.double().T + probe.bias.double()
    expected = reference(features, targets, 0.01, classes)
    torch.testing.assert_close(logits.softmax(1), expected.softmax(1), atol=2e-4, rtol=0)


def test_findings_are_solved_one_by_one_where_they_are_known(monkeypatch):
    monkeypatch.setattr(module, "PENALTIES", (0.1,))
    features, targets = problem(classes=2)
    unknown = torch.where(torch.arange(120) < 20, torch.nan, targets.float())
    both = torch.stack([targets.float(), unknown], dim=1)
    probe = fit_probe(features, both, features, both, classes=2, select_by="loss")
    logits = features.double() @ probe.weight.double().T + probe.bias.double()
    alone = reference(features, targets, 0.1, 2)
    torch.testing.assert_close(logits[:, 0].sigmoid(), alone.softmax(1)[:, 1], atol=2e-4, rtol=0)
    assert not torch.allclose(logits[:, 1], logits[:, 0], atol=1e-2)


@pytest.mark.parametrize("choose", ["loss", "auc"])
def test_the_strength_that_is_kept_is_the_best_on_validation(choose):
    features, targets = problem(images=30)
    val_features, val_targets = problem(images=200, seed=1)
    probe = fit_probe(features, targets, val_features, val_targets, classes=3, select_by=choose)
    assert set(probe.scores) == set(PENALTIES)
    assert probe.score == probe.scores[probe.penalty] == (max if choose == "auc" else min)(probe.scores.values())
    logits = val_features @ probe.weight.T + probe.bias
    measured = mean_auc(logits, val_targets) if choose == "auc" else cross_entropy(logits, val_targets).item()
    assert measured == pytest.approx(probe.score, abs=1e-4)
    assert min(PENALTIES) < probe.penalty  # thirty images want some


def test_the_same_features_give_the_same_bits():
    first, second = (fit_probe(*problem(), *problem(seed=1), classes=3, select_by="loss") for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)


def test_a_feature_that_never_changes_is_harmless():
    features, targets = problem()
    features[:, 2] = 4.0
    probe = fit_probe(features, targets, features, targets, classes=3, select_by="loss")
    assert probe.weight[:, 2].abs().max() == 0
    assert torch.isfinite(probe.bias).all()


def test_features_that_are_not_finite_are_refused():
    features, targets = problem()
    features[3, 1] = torch.inf
    with pytest.raises(NumericsError, match="a feature is not finite"):
        fit_probe(features, targets, features, targets, classes=3, select_by="loss")


def test_a_probe_that_does_not_converge_raises(monkeypatch):
    monkeypatch.setattr(module, "_MAX_ITERATIONS", 1)
    with pytest.raises(NumericsError, match=r"penalty 10 did not converge in 1 iteration;"):
        fit_probe(*problem(), *problem(seed=1), classes=3, select_by="loss")


@pytest.mark.parametrize("mode", ["linear-probe", "fine-tune"])
def test_the_paper_is_followed_to_the_number(mode):
    config = apply_protocol(ClassifyConfig(mode=mode, protocol="paper"))
    optim = optimizer_settings(config)
    assert (config.batch_size, optim.name, optim.lr, optim.weight_decay, optim.steps) == (36, "adamw", 5e-4, 1e-3, 8000)
    assert (optim.warmup_steps, config.select_by) == (800, "last")
    assert config.augment is (mode == "fine-tune")


def test_only_the_usual_probe_is_exact():
    modes = [
        ClassifyConfig(mode=mode, protocol=name)
        for mode in ("linear-probe", "fine-tune")
        for name in ("standard", "paper")
    ]
    assert [uses_solver(config) for config in modes] == [True, False, False, False]
    assert apply_protocol(modes[0]) == ClassifyConfig(select_by="loss")


def test_given_settings_are_kept():
    config = apply_protocol(ClassifyConfig(mode="fine-tune", steps=50, lr=0.1, augment=False, select_by="auc"))
    assert (config.steps, config.warmup_steps, config.lr, config.augment, config.select_by) == (
        50,
        5,
        0.1,
        False,
        "auc",
    )
    assert apply_protocol(config) == config


def test_step_settings_of_a_preset_are_dropped_for_the_solver():
    of_a_preset = ClassifyConfig(steps=200, warmup_steps=20, layer_decay=0.5, val_every=20)
    assert drop_unused(of_a_preset) == ClassifyConfig(val_every=20)
    assert drop_unused(of_a_preset, {"layer_decay"}) == ClassifyConfig(layer_decay=0.5, val_every=20)
    in_steps = ClassifyConfig(protocol="paper", steps=200, warmup_steps=20, val_every=20)
    assert drop_unused(ClassifyConfig(**{**vars(in_steps), "layer_decay": 0.5})) == in_steps


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"steps": 9}, r"classify\.steps=9 does nothing with classify\.mode=linear-probe, classify\.protocol=standard"),
        ({"augment": True}, r"classify\.augment=True does nothing"),
        ({"select_by": "last"}, "there are no steps"),
        ({"protocol": "paper", "layer_decay": 0.5}, r"classify\.layer_decay=0\.5 does nothing"),
        ({"protocol": "paper", "steps": 5, "warmup_steps": 5}, "leaves no step for the decay"),
    ],
)
def test_a_setting_that_does_nothing_is_refused(given, sentence):
    with pytest.raises(ConfigError, match=sentence):
        apply_protocol(ClassifyConfig(**given))


@pytest.mark.parametrize(
    "given", [{"fraction": 0}, {"fraction": 1.5}, {"steps": 0}, {"lr": 0}, {"layer_decay": 2}, {"batch_size": 0}]
)
def test_a_value_out_of_range_is_refused(given):
    name = next(iter(given))
    with pytest.raises(ConfigError, match=rf"classify\.{name}="):
        ClassifyConfig(**given)
