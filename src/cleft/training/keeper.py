"""The end of each step, always in this order: log, validate, save, stop.

Everything of a step is complete before its state is written, and every state is written at this one place. So a
resumed run begins exactly where a step ends, and there is nothing in between to restore.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from cleft.errors import CleftError, NumericsError, ResourceError
from cleft.grammar import count, verb
from cleft.training.learner import Learner
from cleft.training.logs import CsvLog, ProgressBar
from cleft.training.states import StateStore
from cleft.training.stops import StopFlag
from cleft.training.watch import Watch

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
        patience: Validations in a row without a lower loss after which training stops early; None or 0: never.
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
        patience: int | None = None,
    ) -> None:
        self._store = store
        self._intervals = intervals
        self._stop = stop
        self._watch = watch
        self._bar = bar
        self._prefix = prefix
        self._patience = patience
        self.best_step: int | None = None
        """Step with the lowest validation loss so far."""
        self.best_loss = math.inf
        self.since_best = 0
        """Validations in a row without a lower loss."""
        self._validated = 0  # last step whose validation is complete
        self._row: dict[str, float] = {}  # quantities of the step whose line is not written yet
        self._failures = 0  # saves in a row that left nothing behind
        self._clock = (0.0, 0)  # time and step of the last line
        self._saving = _Saving()
        self._dropped = 0  # lines of the log that could not be written

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {
            "best_step": self.best_step,
            "best_loss": self.best_loss,
            "since_best": self.since_best,
            "validated": self._validated,
            "row": self._row,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it back."""
        self.best_step, self.best_loss = state_dict["best_step"], state_dict["best_loss"]
        self.since_best = state_dict["since_best"]
        self._validated, self._row = state_dict["validated"], state_dict["row"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the signals over from Lightning, and finishes a step that was stopped inside its validation."""
        self._stop.install()
        self._clock = (time.monotonic(), trainer.global_step)
        self._saving.begin()
        step = trainer.global_step
        if step == 0:
            return
        if self.best_step is not None and self._store.find(self.best_step) is None:
            log.warning("the best state so far (step %d) is damaged; the best is chosen anew", self.best_step)
            self.best_step, self.best_loss, self.since_best = None, math.inf, 0
        self._store.resumed(step, self.best_step)
        if self._intervals.is_due(step, self._intervals.val_every) and self._validated < step:
            self._finish_step(trainer, pl_module, step)
        trainer.should_stop = self._is_enough()  # stopped early, and killed before the model was written

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reports how much of the log is missing."""
        if self._dropped:
            lines = count(self._dropped, "line")
            log.warning("%s of the log could not be written and %s missing", lines, verb(self._dropped, "is", "are"))

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
        best = self.best_step, self.best_loss, self.since_best
        if self._intervals.is_due(step, self._intervals.val_every):
            improved = self._validate(trainer, _learner(module), step)
        self._write_row(trainer, step)
        stopping, enough = self._stop.agree(trainer), self._is_enough()
        if improved or stopping or enough or self._intervals.is_due(step, self._intervals.save_every):
            saved = self._save(trainer, step, last=stopping or enough or step == self._intervals.steps)
            if not saved:  # weights that are not on disk cannot be the best
                self.best_step, self.best_loss, self.since_best = best
        if enough and step < self._intervals.steps:
            log.info(
                "step %d of %d: training stops early, the validation loss was lowest at step %s and not lower in the "
                "%s since (train.patience)",
                step,
                self._intervals.steps,
                self.best_step,
                count(self.since_best, "validation"),
            )
            trainer.should_stop = True
        elif stopping and step < self._intervals.steps:
            raise self._stop.error(f"at step {step} of {self._intervals.steps}; the same command goes on from there")

    def _is_enough(self) -> bool:
        return bool(self._patience) and self.since_best >= (self._patience or 0)

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
        if self._saving.last is not None:
            row["save_seconds"] = self._saving.last
        if self._watch.skipped:
            steps, were = count(self._watch.skipped, "step"), verb(self._watch.skipped, "was", "were")
            log.info("step %d: %s so far %s too large for half precision", step, steps, were)
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
        self.since_best = 0 if improved else self.since_best + 1
        if improved:
            self.best_step, self.best_loss = step, loss
        best = " (best)" * improved
        log.info("step %d of %d: validation %s%s", step, self._intervals.steps, learner.told(loss), best)
        return improved

    def _write_row(self, trainer: L.Trainer, step: int) -> None:
        if not self._row:
            return
        for logger in trainer.loggers:
            with self._log_may_fail():
                logger.log_metrics({f"{self._prefix}{name}": value for name, value in self._row.items()}, step)
        self._bar.show_loss(f"loss {self._row['train/loss']:.4f}")
        self._row = {}

    def _save(self, trainer: L.Trainer, step: int, *, last: bool) -> bool:
        """Writes a state; says whether it is on disk. A second failure in a row, or any at the end, ends the run."""
        for logger in trainer.loggers:
            if isinstance(logger, CsvLog):
                with self._log_may_fail():
                    logger.save()
        self._store.best_step = self.best_step
        with self._saving.measured():
            trainer.save_checkpoint(self._store.name(step))
        self._saving.hint()
        failure: str | None = trainer.strategy.broadcast(self._store.failure)
        if failure is None:
            self._failures = 0
            return True
        self._failures += 1
        if last or self._failures > 1:
            raise ResourceError(failure)
        log.warning("%s; trying again at the next save", failure)
        return False

    @contextmanager
    def _log_may_fail(self) -> Generator[None]:
        """Lets training continue without a line of the log where its disk is full or gone."""
        try:
            yield
        except OSError as error:
            self._dropped += 1
            if self._dropped == 1:
                log.warning(
                    "the log cannot be written (%s: %s); training continues, and at its end it reports how many lines "
                    "are missing",
                    error.filename or "its folder",
                    error.strerror or error,
                )


class _Saving:
    """How long training states take, beside everything else."""

    def __init__(self) -> None:
        self.last: float | None = None
        """Seconds of the last save."""
        self._end = 0.0  # of the save before
        self._share = 0.0  # of the time since then
        self._hinted = False

    def begin(self) -> None:
        self._end = time.monotonic()

    @contextmanager
    def measured(self) -> Generator[None]:
        start = time.monotonic()
        yield
        end = time.monotonic()
        self.last = end - start
        self._share = self.last / max(end - self._end, 1e-9)
        self._end = end

    def hint(self) -> None:
        """Reports once that saving takes more than a tenth of the time, where a save is long enough to matter."""
        if self._hinted or self.last is None or self.last < _LONG_SAVE or self._share <= _LARGE_SHARE:
            return
        self._hinted = True
        log.warning(
            "a training state takes %.1f s to save, %.0f %% of the time between two of them; raise train.save_every, "
            "or put the run on a faster disk",
            self.last,
            100 * self._share,
        )


_LONG_SAVE = 1.0
_LARGE_SHARE = 0.1


def _learner(module: L.LightningModule) -> Learner:
    assert isinstance(module, Learner)
    return module
