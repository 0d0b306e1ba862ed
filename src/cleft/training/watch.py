"""What is watched at each step: where randomness begins, that numbers are finite, that weights get gradients."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from cleft.errors import ConfigError, NumericsError
from cleft.grammar import agree, share
from cleft.training.learner import Learner
from cleft.training.optim import moving_weights
from cleft.training.states import StateStore

log = logging.getLogger(__name__)

_ADAPTERS = ("lora_", "ia3_", "prompt_encoder", "trainable_tokens")


def step_seed(seed: int, stage: str, step: int, rank: int) -> int:
    """Where the generator of a device begins at a step: a function of these four and of nothing that came before.

    Example:
        >>> step_seed(0, "pretrain", 7, 0) == step_seed(0, "pretrain", 7, 1)
        False
    """
    return int.from_bytes(hashlib.sha256(f"{seed}|{stage}|{step}|{rank}".encode()).digest()[:8]) >> 1


def seed_generators(seed: int, device: torch.device) -> None:
    """Seeds the CPU's generator and a device's."""
    # Not torch.manual_seed: for every kind of device that is absent it stores a stack trace per call.
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


@contextmanager
def kept_generators(device: torch.device) -> Generator[None]:
    """Leaves the CPU's generator and a device's afterwards as they were."""
    with torch.random.fork_rng(devices=[]) if device.type == "cpu" else torch.random.fork_rng([device]):
        yield


class StepSeeds(Callback):
    """Seeds dropout and whatever else draws on the device at the start of each step, so that no state is kept."""

    def __init__(self, seed: int, stage: str) -> None:
        self._seed = seed
        self._stage = stage

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seeds the CPU and the device of this rank."""
        seed = step_seed(self._seed, self._stage, trainer.global_step, trainer.global_rank)
        seed_generators(seed, trainer.strategy.root_device)


class Watch(Callback):
    """Stops in front of an update that would spoil the weights, and where a part that should learn does not.

    All ranks see the same loss and the same gradients, so all stop at the same step.

    Args:
        store: Names the last good state.
    """

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._moving: list[Tensor] = []  # of the model that trains; looked up once, because a step may be short
        self.learning_rate = math.nan
        """Of the last step."""
        self.gradient_norm = torch.tensor(math.nan)
        """Of the last step, before clipping."""
        self.skipped = 0
        """Steps that the gradient scaler of `16-mixed` left out."""

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Looks at loss and gradients between the backward pass and the update; waits for the device once."""
        if not self._moving:
            check_gradients(pl_module)
            self._moving = list(moving_weights(pl_module).values())
        self.learning_rate = float(optimizer.param_groups[0]["lr"])
        gradients = [weight.grad for weight in self._moving if weight.grad is not None]
        self.gradient_norm = torch.nn.utils.get_total_norm(gradients)
        assert isinstance(pl_module, Learner)
        loss = pl_module.last_loss
        values = torch.stack([loss.float(), self.gradient_norm.to(loss.device).float()]).tolist()
        if math.isfinite(values[0]) and math.isfinite(values[1]):
            return
        if math.isfinite(values[0]) and getattr(trainer.precision_plugin, "scaler", None) is not None:
            self.skipped += 1  # too large for half precision; the scaler skips the update and lowers its scale
            return
        raise NumericsError(self._sentence(trainer.global_step, values, pl_module))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it back."""
        self.skipped = state_dict["skipped"]

    def _sentence(self, step: int, values: list[float], module: L.LightningModule) -> str:
        what = "the loss is" if not math.isfinite(values[0]) else "the norm of the gradients is"
        value = values[0] if not math.isfinite(values[0]) else values[1]
        scale = [weight for name, weight in module.named_parameters() if name.endswith("logit_scale")]
        temperature = f", temperature {math.exp(-scale[0].item()):.4g}" if scale else ""
        return (
            f"step {step}: {what} {value}; the update was not made. Learning rate {self.learning_rate:.4g}"
            f"{temperature}; last good state: {last_good(self._store)}. Lower optim.lr, "
            f"set optim.clip_norm, or use a wider train.precision"
        )


def last_good(store: StateStore) -> str:
    """Describes the newest whole training state."""
    last = store.latest(repair=False)
    return f"step {last.step} in {last.path.parent}" if last else "none: no state was saved yet"


def check_gradients(module: L.LightningModule) -> None:
    """Refuses to go on when a whole part that should learn got no gradient in the first backward pass.

    Parts are the towers, their adapters, the projections and the temperature. Single weights without a gradient are
    common (a mask token, a pooler that is not used) and are only counted.

    Raises:
        ConfigError: Names the parts.
    """
    moving = moving_weights(module)
    reached: dict[str, bool] = {}
    for name, weight in moving.items():
        part = _part(name)
        reached[part] = reached.get(part, False) or weight.grad is not None
    silent = sorted(part for part, any_gradient in reached.items() if not any_gradient)
    if silent:
        raise ConfigError(
            f"nothing reaches {', '.join(silent)}: these weights should train but got no gradient; "
            f"switch gradient_checkpointing off or freeze them"
        )
    idle = sum(weight.grad is None for weight in moving.values())
    if idle:
        weights = share(idle, len(moving), "moving weight")
        log.info("%s %s", weights, agree(idle, "[takes|take] no part and [stays as it is|stay as they are]"))


def _part(name: str) -> str:
    parts = name.split(".")
    part = parts[1] if parts[0] == "model" and len(parts) > 1 else parts[0]
    adapter = next((word for word in _ADAPTERS if word in name), None)
    return part if adapter is None else f"{part} ({adapter.rstrip('_')})"
