"""Base class of the Lightning modules of all stages, their optimiser and learning-rate schedule."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from cleft.config import OptimConfig
from cleft.errors import CheckpointError, ConfigError

_FUSED_ON = {"cpu", "cuda", "xpu", "mps"}


def trainable_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters with `requires_grad`, by name."""
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


def parameter_groups(
    module: nn.Module, weight_decay: float, multipliers: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Returns parameter groups for an optimiser, by weight decay and learning-rate multiplier.

    Weight decay applies to matrices only, not to biases, normalisation gains and other parameters with fewer than two
    dimensions, such as the temperature.

    Args:
        module: Its trainable parameters are used, in order.
        weight_decay: Of the matrices.
        multipliers: Parameter name to learning-rate multiplier; by default 1.

    Returns:
        One or two groups for each multiplier, the largest first; none is empty. With `multipliers`, each group has a
        `multiplier`.

    Raises:
        ConfigError: If all parameters are frozen.
    """
    trainable = trainable_parameters(module)
    if not trainable:
        raise ConfigError("all weights are frozen, nothing can be trained; set image.train=true or text.adapt=lora")
    groups: list[dict[str, Any]] = []
    for multiplier in sorted({(multipliers or {}).get(name, 1.0) for name in trainable}, reverse=True):
        decay: list[Tensor] = []
        no_decay: list[Tensor] = []
        for name, weight in trainable.items():
            if (multipliers or {}).get(name, 1.0) == multiplier:
                (no_decay if weight.ndim < 2 or name.endswith("bias") else decay).append(weight)
        extra = {} if multipliers is None else {"multiplier": multiplier}
        groups += [
            {"params": decay, "weight_decay": weight_decay, **extra},
            {"params": no_decay, "weight_decay": 0.0, **extra},
        ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    module: nn.Module,
    config: OptimConfig,
    *,
    multipliers: Mapping[str, float] | None = None,
    fused: bool | None = None,
) -> Optimizer:
    """Builds the optimiser of the trainable parameters of `module`.

    Args:
        module: Already on its device.
        config: Name, peak learning rate, weight decay, momenta.
        multipliers: Parameter name to learning-rate multiplier; by default 1.
        fused: Whether one kernel updates all parameters; by default wherever the device supports it. A gradient scaler
            with gradient clipping does not.

    Raises:
        ConfigError: If all parameters are frozen.
    """
    groups = parameter_groups(module, config.weight_decay, multipliers)
    for group in groups:
        group["lr"] = config.lr * group.pop("multiplier", 1.0)
    if fused is None:
        fused = all(weight.device.type in _FUSED_ON for group in groups for weight in group["params"])
    if config.name == "sgd":
        return SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)
    return AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)


def lr_factor(step: int, config: OptimConfig) -> float:
    """Returns the learning rate of a step, counted from 0, as a fraction of the peak.

    Linear warm-up whose last step has the peak, then a cosine that would reach `min_lr` one step after the end. No step
    has a learning rate of zero.

    Example:
        >>> config = OptimConfig(steps=6, warmup_steps=2)
        >>> [round(lr_factor(step, config), 3) for step in range(7)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    share = min(1.0, (step - config.warmup_steps) / (config.steps - config.warmup_steps))
    lowest = config.min_lr / config.lr
    return lowest + (1 - lowest) * (1 + math.cos(math.pi * share)) / 2


def build_schedule(optimizer: Optimizer, config: OptimConfig) -> LambdaLR:
    """Builds the schedule of `lr_factor`; call its `step` after each optimiser step."""
    return LambdaLR(optimizer, lambda step: lr_factor(step, config))


class TrainingModule(L.LightningModule):
    """Base class of a training stage: loss of a batch, metrics to log, loss of the validation split.

    Its training states hold trainable parameters and buffers only: never the frozen language model.

    Args:
        optim: Optimiser and schedule.
    """

    def __init__(self, optim: OptimConfig) -> None:
        super().__init__()
        self.strict_loading = False  # states lack frozen weights; `check_state_names` checks the others
        self.last_loss = torch.tensor(float("nan"))
        """Loss of the last training step, without gradient."""
        self._optim = optim

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """Returns the loss of one batch over all ranks, a scalar."""

    @abstractmethod
    def validation_loss(self, poll: Callable[[], None]) -> float | None:
        """Returns the metric of the validation split that selects the best weights (lower is better), or None.

        Args:
            poll: To be called at every batch; raises if a signal has arrived.
        """

    def step_metrics(self) -> dict[str, float]:
        """Returns further metrics of the last step, for the log."""
        return {}

    def validation_metrics(self, loss: float) -> dict[str, float]:
        """Returns the metrics of the last validation, for the log.

        Args:
            loss: What `validation_loss` returned.
        """
        return {"val/loss": loss}

    @property
    def selection_metric(self) -> str:
        """Name of what `validation_loss` measures, for messages."""
        return "validation loss"

    def describe_loss(self, loss: float) -> str:
        """Describes the last validation, e.g. `loss 0.4321`."""
        return f"loss {loss:.4f}"

    def lr_multipliers(self) -> Mapping[str, float] | None:
        """Returns the learning-rate multiplier of each parameter by name; None: 1 for all."""
        return None

    def after_update(self) -> None:
        """Called after each optimiser step, before logging, validation and saving."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Computes the loss and keeps it in `last_loss`."""
        loss = self.loss(batch)
        self.last_loss = loss.detach()
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Builds optimiser and schedule, which advances at each batch."""
        # A fused optimiser unscales gradients itself, after the gradient scaler would have to clip them.
        fused = False if getattr(self.trainer.precision_plugin, "scaler", None) is not None else None
        optimizer = build_optimizer(self, self._optim, multipliers=self.lr_multipliers(), fused=fused)
        schedule = build_schedule(optimizer, self._optim)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Removes frozen parameters from a state."""
        frozen = _frozen(self)
        checkpoint["state_dict"] = {
            name: tensor for name, tensor in checkpoint["state_dict"].items() if name not in frozen
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks that a state holds exactly the trainable parameters and buffers."""
        check_state_names(self, checkpoint["state_dict"])


def check_state_names(module: torch.nn.Module, state: dict[str, Tensor]) -> None:
    """Checks the names and shapes of a training state against the trainable parameters and buffers.

    Raises:
        CheckpointError: If names are missing or unexpected, or shapes differ; counts all, names a few.
    """
    own = module.state_dict()
    expected = own.keys() - _frozen(module)
    missing, unexpected = sorted(expected - state.keys()), sorted(state.keys() - expected)
    reshaped = [name for name in sorted(expected & state.keys()) if state[name].shape != own[name].shape]
    faults = [
        f"{len(names)} {what} ({', '.join(names[:3])})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if names
    ]
    if faults:
        raise CheckpointError(
            f"the training state does not fit the model: {'; '.join(faults)}; resume with the version and settings "
            f"that wrote it"
        )


def _frozen(module: torch.nn.Module) -> set[str]:
    return {name for name, weight in module.named_parameters(remove_duplicate=False) if not weight.requires_grad}
