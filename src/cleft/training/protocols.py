"""What a protocol's name stands for: the paper's numbers, and those that are usual today.

The paper gives cross-entropy, batches of 36, a rate of 5e-4, 8,000 steps and a weight decay of 1e-3 for probes and
fine-tuning alike, and no more; what else had to be decided is in docs/decisions/0101.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from cleft.config import ClassifyConfig, OptimConfig
from cleft.errors import ConfigError

_PAPER: Mapping[str, Any] = MappingProxyType(
    {"choose": "last", "batch_size": 36, "steps": 8_000, "lr": 5e-4, "weight_decay": 1e-3}
)
_DEFAULTS: Mapping[tuple[str, str], Mapping[str, Any]] = MappingProxyType(
    {
        ("linear-probe", "usual"): {"choose": "loss"},
        ("linear-probe", "paper"): {**_PAPER, "augment": False},
        ("fine-tune", "paper"): {**_PAPER, "augment": True, "layer_decay": 1.0},
        ("fine-tune", "usual"): {
            "choose": "loss",
            "batch_size": 36,
            "steps": 2_000,
            "lr": 2e-4,
            "weight_decay": 0.05,
            "augment": True,
            "layer_decay": 0.75,
        },
    }
)
"""Mode and protocol to what a setting becomes that was left null; what is not named here does nothing there."""
_OF_STEPS = ("batch_size", "steps", "warmup_steps", "lr", "weight_decay", "layer_decay", "augment")


def is_exact(config: ClassifyConfig) -> bool:
    """Whether the head is solved for, and not trained in steps."""
    return config.mode == "linear-probe" and config.protocol == "usual"


def reads_once(config: ClassifyConfig) -> bool:
    """Whether a tower that stands still sees the same pixels at every step, so that it need read each image once.

    Give it what `follow_protocol` returned.
    """
    return config.mode == "linear-probe" and not config.augment


def without_idle(config: ClassifyConfig, typed: Collection[str] = ()) -> ClassifyConfig:
    """Returns settings without those of a preset that do nothing with this mode and protocol, such as steps of a solve.

    Args:
        config: As read from a preset or a run.
        typed: Names of settings that somebody typed: these stay, so that `follow_protocol` refuses them.
    """
    return dataclasses.replace(config, **{name: None for name in _idle(config) if name not in typed})


def follow_protocol(config: ClassifyConfig) -> ClassifyConfig:
    """Fills in what mode and protocol say wherever a setting was left null.

    Raises:
        ConfigError: If a setting was given that does nothing there, or contradicts another.
    """
    where = f"classify.mode={config.mode}, classify.protocol={config.protocol}"
    defaults = _DEFAULTS[config.mode, config.protocol]
    given = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    steps = given["steps"] or defaults.get("steps")
    known = {**defaults, "warmup_steps": steps // 10} if steps else defaults
    for name in _idle(config):
        if given[name] is not None:
            raise ConfigError(f"classify.{name}={given[name]} does nothing with {where}; leave it out")
    if is_exact(config) and config.choose == "last":
        raise ConfigError(f"classify.choose=last does nothing with {where}: there are no steps; leave it out")
    if is_exact(config) and config.logits == "unit":
        raise ConfigError(
            f"classify.logits=unit does nothing with {where}: a solved probe is a logistic regression; take "
            f"classify.protocol=paper"
        )
    filled = dataclasses.replace(config, **{name: value for name, value in known.items() if given[name] is None})
    if filled.steps is not None and filled.warmup_steps is not None and filled.warmup_steps >= filled.steps:
        raise ConfigError(
            f"classify.warmup_steps={filled.warmup_steps} leaves no step to decay in: classify.steps={filled.steps}; "
            f"lower the first or raise the second"
        )
    return filled


def _idle(config: ClassifyConfig) -> list[str]:
    """Settings of steps that do nothing with this mode and protocol."""
    read = _DEFAULTS[config.mode, config.protocol]
    warms_up = "steps" in read
    return [name for name in _OF_STEPS if name not in read and not (name == "warmup_steps" and warms_up)]


def optim_of(config: ClassifyConfig) -> OptimConfig:
    """Returns optimiser and schedule of a head that is trained in steps; give it what `follow_protocol` returned."""
    assert config.lr is not None
    assert config.weight_decay is not None
    assert config.steps is not None
    assert config.warmup_steps is not None
    return OptimConfig(
        lr=config.lr, weight_decay=config.weight_decay, steps=config.steps, warmup_steps=config.warmup_steps
    )
