"""The end of each step, always in this order: log, validate, save, stop.

Everything of a step is complete before its state is written, and every state is written at this one place. So a
resumed run begins exactly where a step ends, and there is nothing in between to restore.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from cleft.errors import CleftError, NumericsError, ResourceError
from cleft.learning.learner import Learner
from cleft.learning.logs import CsvLog, ProgressBar
from cleft.learning.states import StateStore
from cleft.learning.stops import StopFlag
from cleft.learning.watch import Watch

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """How many steps there are, and how often what happens."""

    steps: int
    val_every: int
    save_every: int
    log_every: int

    def is_due(self, step: int, every: int) -> bool:
        """Whether something that happens every so often happens at the end of this step; always at the last."""
        return step % every == 0 or step == self.steps


class Keeper(Callback):
    """Logs, validates, saves and stops at the end of a step.

    Args:
        store: Where states go.
        intervals: How often.
        stop: Tells that a signal arrived.
        watch: Knows rate and gradients of the step.
        bar: Shows the last loss.
        prefix: In front of every logged name, e.g. `context/`.
    """

    def __init__(
        self,
        store: StateStore,
        intervals: Intervals,
        *,
        stop: StopFlag,
        watch: Watch,
        bar: ProgressBar,
        prefix: str = "",
    ) -> None:
        self._store = store
        self._intervals = intervals
        self._stop = stop
        self._watch = watch
        self._bar = bar
        self._prefix = prefix
        self.best_step: int | None = None
        """Step with the lowest validation loss so far."""
        self.best_loss = math.inf
        self._validated = 0  # last step whose validation is complete
        self._row: dict[str, float] = {}  # quantities of the step whose line is not written yet
        self._failures = 0  # saves in a row that left nothing behind
        self._clock = (0.0, 0)  # time and step of the last line

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {
            "best_step": self.best_step,
            "best_loss": self.best_loss,
            "validated": self._validated,
            "row": self._row,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it back."""
        self.best_step, self.best_loss = state_dict["best_step"], state_dict["best_loss"]
        self._validated, self._row = state_dict["validated"], state_dict["row"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the signals over from Lightning, and finishes a step that was stopped inside its validation."""
        self._stop.install()
        self._clock = (time.monotonic(), trainer.global_step)
        step = trainer.global_step
        if step == 0:
            return
        if self.best_step is not None and self._store.find(self.best_step) is None:
            log.warning("the best state so far (step %d) is damaged; the best is chosen anew", self.best_step)
            self.best_step, self.best_loss = None, math.inf
        self._store.resumed(step, self.best_step)
        if self._intervals.is_due(step, self._intervals.val_every) and self._validated < step:
            self._finish_step(trainer, pl_module, step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Does everything that belongs to the step that was just made."""
        step = trainer.global_step
        learner = _learner(pl_module)
        learner.after_update()
        validates = self._intervals.is_due(step, self._intervals.val_every)
        if validates or self._intervals.is_due(step, self._intervals.log_every):
            self._row = self._measure(learner, step)
        self._finish_step(trainer, pl_module, step)

    def _finish_step(self, trainer: L.Trainer, module: L.LightningModule, step: int) -> None:
        improved = False
        best = self.best_step, self.best_loss
        if self._intervals.is_due(step, self._intervals.val_every):
            improved = self._validate(trainer, _learner(module), step)
        self._write_row(trainer, step)
        stopping = trainer.strategy.reduce_boolean_decision(self._stop.number is not None, all=False)
        if improved or stopping or self._intervals.is_due(step, self._intervals.save_every):
            saved = self._save(trainer, step, last=stopping or step == self._intervals.steps)
            if not saved:  # weights that are not on disk cannot be the best
                self.best_step, self.best_loss = best
        if stopping and step < self._intervals.steps:
            raise self._stop.error(f"at step {step} of {self._intervals.steps}; the same command goes on from there")

    def _measure(self, learner: Learner, step: int) -> dict[str, float]:
        now, (then, before) = time.monotonic(), self._clock
        self._clock = (now, step)
        row = {
            "train/loss": learner.last_loss.item(),
            "lr": self._watch.learning_rate,
            "gradient_norm": float(self._watch.gradient_norm),
            "seconds_per_step": (now - then) / max(1, step - before),
            **learner.observe(),
        }
        if self._watch.skipped:
            log.info("step %d: %d steps so far were too large for half precision", step, self._watch.skipped)
        return row

    def _validate(self, trainer: L.Trainer, learner: Learner, step: int) -> bool:
        """Measures the validation loss; says whether it is the best so far."""

        def poll() -> None:
            # Ranks may have different numbers of batches, so several of them stop after validation, together.
            if trainer.world_size == 1:
                self._stop.check(f"at step {step} of {self._intervals.steps}, during validation")

        try:
            loss = learner.validation_loss(poll)
        except CleftError:
            if self._stop.number is not None:
                self._save(trainer, step, last=True)
            raise
        self._validated = step
        self._clock = (time.monotonic(), step)
        if loss is None:
            return False
        if not math.isfinite(loss):
            raise NumericsError(f"step {step}: the validation loss is {loss}; lower optim.lr")
        self._row |= learner.validated(loss)
        improved = loss < self.best_loss
        if improved:
            self.best_step, self.best_loss = step, loss
        best = " (best)" * improved
        log.info("step %d of %d: validation %s%s", step, self._intervals.steps, learner.told(loss), best)
        return improved

    def _write_row(self, trainer: L.Trainer, step: int) -> None:
        if not self._row:
            return
        for logger in trainer.loggers:
            logger.log_metrics({f"{self._prefix}{name}": value for name, value in self._row.items()}, step)
        self._bar.show_loss(f"loss {self._row['train/loss']:.4f}")
        self._row = {}

    def _save(self, trainer: L.Trainer, step: int, *, last: bool) -> bool:
        """Writes a state; says whether it is on disk. A second failure in a row, or any at the end, ends the run."""
        for logger in trainer.loggers:
            if isinstance(logger, CsvLog):
                logger.save()
        self._store.best_step = self.best_step
        trainer.save_checkpoint(self._store.name(step))
        failure: str | None = trainer.strategy.broadcast(self._store.failure)
        if failure is None:
            self._failures = 0
            return True
        self._failures += 1
        if last or self._failures > 1:
            raise ResourceError(failure)
        log.warning("%s; trying again at the next save", failure)
        return False


def _learner(module: L.LightningModule) -> Learner:
    assert isinstance(module, Learner)
    return module
