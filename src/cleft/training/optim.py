"""Which weights decay, which optimiser moves them, and how fast at each step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from cleft.config import OptimConfig
from cleft.errors import ConfigError

_FUSED_ON = {"cpu", "cuda", "xpu", "mps"}


def moving_weights(module: nn.Module) -> dict[str, Tensor]:
    """Returns the weights that training may change, by name."""
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


def parameter_groups(
    module: nn.Module, weight_decay: float, rates: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Tells apart what decays and what does not, and what learns at which share of the rate.

    Matrices decay. Biases, the gains of norms and whatever else has less than two dimensions (the temperature too)
    do not: pulling a gain or a temperature to zero is a change of the model, not a regularisation.

    Args:
        module: Its weights with `requires_grad` are taken, in the order of their names' appearance.
        weight_decay: Of the matrices.
        rates: Name of a weight to its share of the learning rate; 1 where it is not named.

    Returns:
        One or two groups for each share, as an optimiser wants them, the largest share first; none is empty. `share`
        is that share, where any is named.

    Raises:
        ConfigError: If no weight may move.
    """
    moving = moving_weights(module)
    if not moving:
        raise ConfigError("nothing trains: every weight is frozen; set image.train=true or text.adapt=lora")
    groups: list[dict[str, Any]] = []
    for share in sorted({(rates or {}).get(name, 1.0) for name in moving}, reverse=True):
        of_share = {name: weight for name, weight in moving.items() if (rates or {}).get(name, 1.0) == share}
        kept = [weight for name, weight in of_share.items() if weight.ndim < 2 or name.endswith("bias")]
        decaying = [weight for name, weight in of_share.items() if not (weight.ndim < 2 or name.endswith("bias"))]
        extra = {} if rates is None else {"share": share}
        groups += [
            {"params": decaying, "weight_decay": weight_decay, **extra},
            {"params": kept, "weight_decay": 0.0, **extra},
        ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    module: nn.Module, config: OptimConfig, *, rates: Mapping[str, float] | None = None, fused: bool | None = None
) -> Optimizer:
    """Builds the optimiser over the weights of `module` that may move.

    Args:
        module: Already on its device.
        config: Name, peak rate, decay, momenta.
        rates: Name of a weight to its share of the rate; by default all have the whole.
        fused: Whether all weights are updated in one kernel; by default wherever the device can. A gradient scaler
            that also clips cannot work with it.

    Raises:
        ConfigError: If no weight may move.
    """
    groups = parameter_groups(module, config.weight_decay, rates)
    for group in groups:
        group["lr"] = config.lr * group.pop("share", 1.0)
    if fused is None:
        fused = all(weight.device.type in _FUSED_ON for group in groups for weight in group["params"])
    if config.name == "sgd":
        return SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)
    return AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)


def rate_factor(step: int, config: OptimConfig) -> float:
    """Share of the peak learning rate that step `step` uses, counted from 0.

    Rises in equal parts over the warm-up, so that the last of its steps has the peak; then falls along half a cosine
    that would reach `min_lr` one step after the end. No step has rate zero: a step that changes nothing is wasted.

    Example:
        >>> config = OptimConfig(steps=6, warmup_steps=2)
        >>> [round(rate_factor(step, config), 3) for step in range(7)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    share = min(1.0, (step - config.warmup_steps) / (config.steps - config.warmup_steps))
    lowest = config.min_lr / config.lr
    return lowest + (1 - lowest) * (1 + math.cos(math.pi * share)) / 2


def build_schedule(optimizer: Optimizer, config: OptimConfig) -> LambdaLR:
    """Builds the schedule of `rate_factor`; call its `step` after each step of the optimiser."""
    return LambdaLR(optimizer, lambda step: rate_factor(step, config))
