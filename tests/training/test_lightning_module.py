"""Groups, optimisers and the shape of the learning rate."""

import math

import pytest
import torch
from torch import nn

from cleft.config import OptimConfig
from cleft.errors import ConfigError
from cleft.training.lightning_module import build_optimizer, build_schedule, lr_factor, parameter_groups


class Model(nn.Module):
    """A matrix with a bias, a norm, a temperature, and a frozen matrix."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.norm = nn.LayerNorm(3)
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_weight_decay_applies_to_matrices_only():
    model = Model()
    decaying, kept = parameter_groups(model, 0.2)
    assert decaying["weight_decay"] == 0.2
    assert [weight is model.linear.weight for weight in decaying["params"]] == [True]
    assert kept["weight_decay"] == 0.0
    assert len(kept["params"]) == 4


def test_the_largest_share_of_the_rate_comes_first():
    model = Model()
    rates = {"linear.weight": 0.25, "linear.bias": 0.25, "norm.weight": 0.5}
    groups = parameter_groups(model, 0.2, rates)
    assert [(group["multiplier"], group["weight_decay"]) for group in groups] == [
        (1.0, 0.0),
        (0.5, 0.0),
        (0.25, 0.2),
        (0.25, 0.0),
    ]
    optimizer = build_optimizer(model, OptimConfig(lr=0.1), multipliers=rates)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.05, 0.025, 0.025])


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize(("fused", "expected"), [(None, True), (True, True), (False, False)])
def test_one_kernel_updates_all_weights_unless_refused(name, fused, expected):
    optimizer = build_optimizer(Model(), OptimConfig(name=name), fused=fused)
    assert [group["fused"] for group in optimizer.param_groups] == [expected] * 2


def test_g10_a_model_without_trainable_weights_is_refused():
    with pytest.raises(ConfigError, match="nothing can be trained"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimConfig())


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_optimiser_is_the_one_named(name):
    optimizer = build_optimizer(Model(), OptimConfig(name=name, momentum=0.8, betas=(0.7, 0.95)))
    expected = {"adamw": (torch.optim.AdamW, "betas", (0.7, 0.95)), "sgd": (torch.optim.SGD, "momentum", 0.8)}
    kind, option, value = expected[name]
    assert type(optimizer) is kind
    assert optimizer.defaults[option] == value


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_one_step_changes_trainable_parameters_only(name):
    model = Model()
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    optimizer = build_optimizer(model, OptimConfig(name=name, lr=0.1, steps=2, warmup_steps=0))
    model.norm(model.linear(torch.ones(1, 2))).square().mul(
        torch.arange(3.0) * model.logit_scale.exp()
    ).sum().backward()
    optimizer.step()
    moved = {key for key, weight in model.state_dict().items() if not torch.equal(weight, before[key])}
    assert "linear.weight" in moved
    assert "frozen.weight" not in moved


def test_the_rate_rises_to_the_peak_and_falls_along_half_a_cosine():
    config = OptimConfig(lr=2.0, steps=10, warmup_steps=4)
    optimizer = build_optimizer(Model(), config)
    schedule = build_schedule(optimizer, config)
    rates = []
    for _ in range(config.steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[7] == pytest.approx(1.0)
    assert rates[9] == pytest.approx(1 + math.cos(math.pi * 5 / 6))
    assert optimizer.param_groups[0]["lr"] == 0


def test_without_warm_up_the_first_step_has_the_peak():
    assert lr_factor(0, OptimConfig(steps=5, warmup_steps=0)) == 1.0


def test_the_learning_rate_ends_at_the_minimum():
    config = OptimConfig(lr=1e-4, min_lr=1e-5, steps=8, warmup_steps=2)
    assert lr_factor(config.steps, config) == pytest.approx(0.1)
    assert lr_factor(5, config) == pytest.approx(0.55)
