"""What the engine asks of a stage. Each stage is one small class on top: a model, a loss and its settings."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from cleft.config import OptimConfig
from cleft.errors import CheckpointError
from cleft.training.optim import build_optimizer, build_schedule


class Learner(L.LightningModule):
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

    def observe(self) -> dict[str, float]:
        """Returns further numbers of the last step, for the log."""
        return {}

    def validated(self, loss: float) -> dict[str, float]:
        """Returns the numbers of the last validation, for the log.

        Args:
            loss: What `validation_loss` returned.
        """
        return {"val/loss": loss}

    @property
    def chosen_by(self) -> str:
        """What `validation_loss` measures, for messages."""
        return "validation loss"

    def told(self, loss: float) -> str:
        """Returns in words what the best weights are chosen by, e.g. `loss 0.4321`."""
        return f"loss {loss:.4f}"

    def rates(self) -> Mapping[str, float] | None:
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
        optimizer = build_optimizer(self, self._optim, rates=self.rates(), fused=fused)
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
        check_names(self, checkpoint["state_dict"])


def check_names(module: torch.nn.Module, state: dict[str, Tensor]) -> None:
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
