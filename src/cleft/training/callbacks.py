"""The end of each step, always in this order: log, validate, save, stop.

Everything of a step is complete before its state is written, and every state is written at this one place. So a
resumed run begins exactly where a step ends, and there is nothing in between to restore.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Self

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor
from torch.optim import Optimizer

from cleft.errors import CleftError, ConfigError, Interrupted, NumericsError, ResourceError, Terminated
from cleft.grammar import agree, count, share, verb
from cleft.training.lightning_module import TrainingModule, trainable_parameters
from cleft.training.loggers import CsvLog
from cleft.training.training_state import StateStore

_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


class StopFlag:
    """Remembers that SIGINT, SIGTERM or SIGHUP (the terminal was closed) arrived.

    As a context manager, it gives the handlers back at the end. The handler does nothing but remember; no file is
    written and no rank is called from inside a signal. A second signal ends the process at once: training states are
    whole at any moment.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        """The signal that arrived, or None."""
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}

    def __enter__(self) -> Self:
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def install(self) -> None:
        """Takes over these signals; again, where a library has put itself in front. Other threads cannot: no effect."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self._remember)

    def error(self, doing: str) -> CleftError:
        """The error that says what was stopped, with the exit code a scheduler expects (never 0)."""
        if self.number is not None and self.number != signal.SIGINT:
            return Terminated(f"stopped by {signal.Signals(self.number).name} {doing}")
        return Interrupted(f"stopped by Ctrl-C {doing}")

    def check(self, doing: str) -> None:
        """Raises that error if a signal has arrived."""
        if self.number is not None:
            raise self.error(doing)

    def agree(self, trainer: L.Trainer) -> bool:
        """Returns whether a signal has arrived at any rank, the same on all, so that they stop at the same step."""
        if trainer.world_size == 1:
            return self.number is not None
        share = torch.tensor(self.number or 0, device=trainer.strategy.root_device)
        dist.all_reduce(share, op=dist.ReduceOp.MAX)
        agreed = int(share)
        if agreed:
            self.number = agreed  # otherwise a signal of this very moment, of which the others do not know yet, stays
        return bool(agreed)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            os._exit(128 + number)
        self.number = number


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
def preserved_rng(device: torch.device) -> Generator[None]:
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


class StepMonitor(Callback):
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
            self._moving = list(trainable_parameters(pl_module).values())
        self.learning_rate = float(optimizer.param_groups[0]["lr"])
        gradients = [weight.grad for weight in self._moving if weight.grad is not None]
        self.gradient_norm = torch.nn.utils.get_total_norm(gradients)
        assert isinstance(pl_module, TrainingModule)
        loss = pl_module.last_loss
        values = torch.stack([loss.float(), self.gradient_norm.to(loss.device).float()]).tolist()
        if math.isfinite(values[0]) and math.isfinite(values[1]):
            return
        if math.isfinite(values[0]) and getattr(trainer.precision_plugin, "scaler", None) is not None:
            self.skipped += 1  # too large for half precision; the scaler skips the update and lowers its scale
            return
        raise NumericsError(self._sentence(trainer.global_step, values, pl_module))

    @property
    def state_key(self) -> str:
        """Name of this callback in training states; earlier versions wrote it."""
        return "Watch"

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
            f"{temperature}; last good state: {describe_last_state(self._store)}. Lower optim.lr, "
            f"set optim.clip_norm, or use a wider train.precision"
        )


def describe_last_state(store: StateStore) -> str:
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
    moving = trainable_parameters(module)
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


log = logging.getLogger(__name__)


class ProgressBar(Callback):
    """Steps, rate, time left and the last loss on the terminal; silent where nobody watches.

    Args:
        title: Word in front of the bar.
        steps: Steps of the whole run.
        console: Where to draw; by default the terminal's error channel.
    """

    def __init__(self, title: str, steps: int, console: Console | None = None) -> None:
        self._title = title
        self._steps = steps
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws the bar where the run goes on."""
        if not (trainer.is_global_zero and self._console.is_terminal):
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
        )
        self._bar = Progress(*columns, console=self._console)
        self._bar.add_task(self._title, total=self._steps, completed=trainer.global_step, loss="")
        self._bar.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves it on; reading the loss waits for the device, so only where it was logged anyway."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=trainer.global_step)

    def show_loss(self, text: str) -> None:
        """Shows the last loss behind the bar."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], loss=text)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leaves the finished bar standing."""
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Gives the terminal back before the error is printed."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class _Rate(ProgressColumn):
    """Steps per second, or seconds per step where that reads better."""

    def render(self, task: Task) -> Text:
        if not task.speed:
            return Text("")
        return Text(f"{task.speed:.1f}/s" if task.speed >= 1 else f"{1 / task.speed:.1f} s each")


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


class StepEnd(Callback):
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
        watch: StepMonitor,
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
        self._saving = _SaveTimer()
        self._dropped = 0  # lines of the log that could not be written

    @property
    def state_key(self) -> str:
        """Name of this callback in training states; earlier versions wrote it."""
        return "Keeper"

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
        trainer.should_stop = self._patience_is_exhausted()  # stopped early, and killed before the model was written

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
            self._row = self._step_row(learner, step)
        self._finish_step(trainer, pl_module, step)

    def _finish_step(self, trainer: L.Trainer, module: L.LightningModule, step: int) -> None:
        improved = False
        best = self.best_step, self.best_loss, self.since_best
        if self._intervals.is_due(step, self._intervals.val_every):
            improved = self._validate(trainer, _learner(module), step)
        self._write_row(trainer, step)
        stopping, enough = self._stop.agree(trainer), self._patience_is_exhausted()
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

    def _patience_is_exhausted(self) -> bool:
        return bool(self._patience) and self.since_best >= (self._patience or 0)

    def _step_row(self, learner: TrainingModule, step: int) -> dict[str, float]:
        now, (then, before) = time.monotonic(), self._clock
        self._clock = (now, step)
        row = {
            "train/loss": learner.last_loss.item(),
            "lr": self._watch.learning_rate,
            "gradient_norm": float(self._watch.gradient_norm),
            "seconds_per_step": (now - then) / max(1, step - before),
            **learner.step_metrics(),
        }
        if self._saving.last is not None:
            row["save_seconds"] = self._saving.last
        if self._watch.skipped:
            steps, were = count(self._watch.skipped, "step"), verb(self._watch.skipped, "was", "were")
            log.info("step %d: %s so far %s too large for half precision", step, steps, were)
        return row

    def _validate(self, trainer: L.Trainer, learner: TrainingModule, step: int) -> bool:
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
        self._row |= learner.validation_metrics(loss)
        improved = loss < self.best_loss
        self.since_best = 0 if improved else self.since_best + 1
        if improved:
            self.best_step, self.best_loss = step, loss
        best = " (best)" * improved
        log.info("step %d of %d: validation %s%s", step, self._intervals.steps, learner.describe_loss(loss), best)
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
            trainer.save_checkpoint(self._store.folder / str(step))
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


class _SaveTimer:
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


def _learner(module: L.LightningModule) -> TrainingModule:
    assert isinstance(module, TrainingModule)
    return module
