"""What the engine asks of a stage. Each stage is one small class on top: a model, a loss and its settings."""

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
    moving = trainable_parameters(module)
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


def lr_factor(step: int, config: OptimConfig) -> float:
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
    return LambdaLR(optimizer, lambda step: lr_factor(step, config))


class TrainingModule(L.LightningModule):
    """One stage of learning: a loss per batch, numbers to log, a loss over the validation split.

    Its training states hold what may move and nothing else: never the frozen language model.

    Args:
        optim: Optimiser and schedule.
    """

    def __init__(self, optim: OptimConfig) -> None:
        super().__init__()
        self.strict_loading = False  # frozen weights are not in a state; what must be there is checked below
        self.last_loss = torch.tensor(float("nan"))
        """Loss of the last training step, without gradient."""
        self._optim = optim

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """Returns the loss of one batch over all devices, a scalar."""

    @abstractmethod
    def validation_loss(self, poll: Callable[[], None]) -> float | None:
        """Returns what the best weights have least of, over the whole validation split; None where there is none.

        Args:
            poll: To be called at every batch; raises when a signal has arrived.
        """

    def step_metrics(self) -> dict[str, float]:
        """Returns further numbers of the last step, for the log."""
        return {}

    def validation_metrics(self, loss: float) -> dict[str, float]:
        """Returns the numbers of the last validation, for the log.

        Args:
            loss: What `validation_loss` returned.
        """
        return {"val/loss": loss}

    @property
    def selection_metric(self) -> str:
        """What `validation_loss` measures, for messages."""
        return "validation loss"

    def describe_loss(self, loss: float) -> str:
        """Returns in words what the best weights are chosen by, e.g. `loss 0.4321`."""
        return f"loss {loss:.4f}"

    def lr_multipliers(self) -> Mapping[str, float] | None:
        """Returns the share of the learning rate of each weight; None gives all the whole."""
        return None

    def after_update(self) -> None:
        """Called when the optimiser has moved the weights, before anything looks at them."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Remembers the loss for whoever watches it."""
        loss = self.loss(batch)
        self.last_loss = loss.detach()
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser and schedule of the settings, one step of it per batch."""
        # A gradient scaler cannot clip behind an optimiser that undoes its scaling by itself.
        fused = False if getattr(self.trainer.precision_plugin, "scaler", None) is not None else None
        optimizer = build_optimizer(self, self._optim, rates=self.lr_multipliers(), fused=fused)
        schedule = build_schedule(optimizer, self._optim)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves frozen weights out."""
        frozen = _frozen(self)
        checkpoint["state_dict"] = {
            name: tensor for name, tensor in checkpoint["state_dict"].items() if name not in frozen
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a state that does not hold exactly what may move."""
        check_state_names(self, checkpoint["state_dict"])


def check_state_names(module: torch.nn.Module, state: dict[str, Tensor]) -> None:
    """Compares the names of a training state with the weights that may move and the buffers.

    Raises:
        CheckpointError: If a name is missing, left over, or has another shape; counts all, names a few.
    """
    own = module.state_dict()
    expected = own.keys() - _frozen(module)
    missing, left_over = sorted(expected - state.keys()), sorted(state.keys() - expected)
    reshaped = [name for name in sorted(expected & state.keys()) if state[name].shape != own[name].shape]
    faults = [
        f"{len(names)} {what} ({', '.join(names[:3])})"
        for what, names in (("missing", missing), ("left over", left_over), ("of another shape", reshaped))
        if names
    ]
    if faults:
        raise CheckpointError(
            f"the training state does not fit the model: {'; '.join(faults)}; go on with the version and the settings "
            f"it was made with"
        )


def _frozen(module: torch.nn.Module) -> set[str]:
    return {name for name, weight in module.named_parameters(remove_duplicate=False) if not weight.requires_grad}
