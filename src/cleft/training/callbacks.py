"""Lightning callbacks: seed each step, check values and gradients, show progress, then log, validate, save and stop.

`StepEnd` does the last four in this order. All training states are written there, after everything else of the step, so
a resumed run starts exactly at the end of a step.
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

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


class StopFlag:
    """Records that SIGINT, SIGTERM or SIGHUP (the terminal was closed) arrived.

    As a context manager, it restores the previous handlers on exit, and hands them a signal that arrived after the last
    check, so that a study does not start its next step. The handler only sets `number`: no file is written
    and no collective operation runs inside a signal handler. A second signal ends the process at once, which is safe
    because training states are complete at any moment.
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
            if kind is None and self.number is not None:  # it arrived after the last check
                signal.raise_signal(self.number)

    def install(self) -> None:
        """Installs the handlers, again if a library has replaced them. Does nothing outside the main thread."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self._remember)

    def error(self, when: str) -> CleftError:
        """Returns the error to raise, with the exit code a scheduler expects (never 0).

        Args:
            when: Where the work stopped, e.g. `at step 3 of 10`.
        """
        if self.number is not None and self.number != signal.SIGINT:
            return Terminated(f"stopped by {signal.Signals(self.number).name} {when}")
        return Interrupted(f"stopped by Ctrl-C {when}")

    def check(self, when: str) -> None:
        """Raises `error(when)` if a signal has arrived."""
        if self.number is not None:
            raise self.error(when)

    def agree(self, trainer: L.Trainer) -> bool:
        """Returns whether a signal has arrived at any rank; all ranks get the same value and stop at the same step."""
        if trainer.world_size == 1:
            return self.number is not None
        number = torch.tensor(self.number or 0, device=trainer.strategy.root_device)
        dist.all_reduce(number, op=dist.ReduceOp.MAX)
        agreed = int(number)
        if agreed:  # else keep `self.number`: a signal may have arrived after the reduction
            self.number = agreed
        return bool(agreed)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            os._exit(128 + number)
        self.number = number


_ADAPTERS = ("lora_", "ia3_", "prompt_encoder", "trainable_tokens")


def step_seed(seed: int, stage: str, step: int, rank: int) -> int:
    """Returns the seed of a rank's random generators at a step, a function of the four arguments alone.

    Example:
        >>> step_seed(0, "pretrain", 7, 0) == step_seed(0, "pretrain", 7, 1)
        False
    """
    return int.from_bytes(hashlib.sha256(f"{seed}|{stage}|{step}|{rank}".encode()).digest()[:8]) >> 1


def seed_generators(seed: int, device: torch.device) -> None:
    """Seeds the random generators of the CPU and of a device."""
    # Not torch.manual_seed: it stores a stack trace per call for every kind of device that is absent.
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


@contextmanager
def preserved_rng(device: torch.device) -> Generator[None]:
    """Restores the random generators of the CPU and of a device on exit."""
    with torch.random.fork_rng(devices=[]) if device.type == "cpu" else torch.random.fork_rng([device]):
        yield


class StepSeeds(Callback):
    """Seeds the random generators at the start of each step, so that training states need no generator state."""

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
    """Stops before an update with a non-finite loss or gradient; checks once that every trainable part gets gradients.

    All ranks see the same loss and gradients, so all stop at the same step.

    Args:
        store: Its newest state is named in the error.
    """

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._parameters: list[Tensor] = []  # trainable ones, looked up once: a step may take under a millisecond
        self.learning_rate = math.nan
        """Of the last step."""
        self.gradient_norm = torch.tensor(math.nan)
        """Of the last step, before clipping."""
        self.skipped = 0
        """Steps that the gradient scaler of `16-mixed` skipped."""

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Checks loss and gradients between the backward pass and the update; synchronises with the device once."""
        if not self._parameters:
            check_gradients(pl_module)
            self._parameters = list(trainable_parameters(pl_module).values())
        self.learning_rate = float(optimizer.param_groups[0]["lr"])
        gradients = [weight.grad for weight in self._parameters if weight.grad is not None]
        self.gradient_norm = torch.nn.utils.get_total_norm(gradients)
        assert isinstance(pl_module, TrainingModule)
        loss = pl_module.last_loss
        values = torch.stack([loss.float(), self.gradient_norm.to(loss.device).float()]).tolist()
        if math.isfinite(values[0]) and math.isfinite(values[1]):
            return
        if math.isfinite(values[0]) and getattr(trainer.precision_plugin, "scaler", None) is not None:
            self.skipped += 1  # overflow in half precision: the scaler skips the update and lowers its scale
            return
        raise NumericsError(self._message(trainer.global_step, values, pl_module))

    @property
    def state_key(self) -> str:
        """Name of this callback in training states; earlier versions wrote it."""
        return "Watch"

    def state_dict(self) -> dict[str, Any]:
        """Returns what training states keep of this callback."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        self.skipped = state_dict["skipped"]

    def _message(self, step: int, values: list[float], module: L.LightningModule) -> str:
        what = "the loss is" if not math.isfinite(values[0]) else "the gradient norm is"
        value = values[0] if not math.isfinite(values[0]) else values[1]
        scale = [weight for name, weight in module.named_parameters() if name.endswith("logit_scale")]
        temperature = f", temperature {math.exp(-scale[0].item()):.4g}" if scale else ""
        return (
            f"step {step}: {what} {value}; the update was not made. Learning rate {self.learning_rate:.4g}"
            f"{temperature}; last training state: {describe_last_state(self._store)}. Lower optim.lr, "
            f"set optim.clip_norm, or use a wider train.precision"
        )


def describe_last_state(store: StateStore) -> str:
    """Describes the newest intact training state, for messages."""
    last = store.latest(repair=False)
    return f"step {last.step} in {last.path.parent}" if last else "none saved yet"


def check_gradients(module: L.LightningModule) -> None:
    """Checks after the first backward pass that every trainable part of the model got a gradient.

    Parts are the encoders, their adapters, the projections and the temperature. Single parameters without a gradient
    are common (a mask token, an unused pooler) and are only counted.

    Raises:
        ConfigError: If a part got no gradient; names all such parts.
    """
    parameters = trainable_parameters(module)
    reached: dict[str, bool] = {}
    for name, weight in parameters.items():
        part = _part(name)
        reached[part] = reached.get(part, False) or weight.grad is not None
    without = sorted(part for part, any_gradient in reached.items() if not any_gradient)
    if without:
        raise ConfigError(
            f"no gradient reaches {', '.join(without)}, which should be trained; switch gradient_checkpointing off, or "
            f"freeze these parts"
        )
    unused = sum(weight.grad is None for weight in parameters.values())
    if unused:
        subject = share(unused, len(parameters), "trainable parameter")
        log.info("%s %s", subject, agree(unused, "[gets|get] no gradient and [stays|stay] unchanged"))


def _part(name: str) -> str:
    parts = name.split(".")
    part = parts[1] if parts[0] == "model" and len(parts) > 1 else parts[0]
    adapter = next((word for word in _ADAPTERS if word in name), None)
    return part if adapter is None else f"{part} ({adapter.rstrip('_')})"


class ProgressBar(Callback):
    """Progress bar on the terminal: steps, rate, time left, last loss. Shows nothing if stderr is no terminal.

    Args:
        title: Label of the bar.
        steps: Total steps of the run.
        console: Where to draw; by default stderr.
    """

    def __init__(self, title: str, steps: int, console: Console | None = None) -> None:
        self._title = title
        self._steps = steps
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Shows the bar at the step the run starts from."""
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
        """Advances the bar, without the loss: reading it would synchronise with the device."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=trainer.global_step)

    def show_loss(self, text: str) -> None:
        """Shows the last logged loss after the bar."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], loss=text)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leaves the finished bar on the terminal."""
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Releases the terminal before the error is printed."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class _Rate(ProgressColumn):
    """Steps per second, or seconds per step if below one step per second."""

    def render(self, task: Task) -> Text:
        if not task.speed:
            return Text("")
        return Text(f"{task.speed:.1f}/s" if task.speed >= 1 else f"{1 / task.speed:.1f} s/step")


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Number of steps, and intervals of validating, saving and logging in steps."""

    steps: int
    val_every: int
    save_every: int
    log_every: int

    def is_due(self, step: int, every: int) -> bool:
        """Returns whether an action with interval `every` is due at the end of a step; always at the last step."""
        return step % every == 0 or step == self.steps


class StepEnd(Callback):
    """Logs, validates, saves and stops at the end of a step.

    Args:
        store: Where training states are saved.
        intervals: Number of steps and intervals.
        stop: Set by a signal.
        monitor: Learning rate and gradient norm of the step.
        bar: Shows the last loss.
        prefix: Prefix of every logged name, e.g. `context/`.
        patience: Validations in a row without a lower loss after which training stops early; None or 0: never.
    """

    def __init__(
        self,
        store: StateStore,
        intervals: Intervals,
        *,
        stop: StopFlag,
        monitor: StepMonitor,
        bar: ProgressBar,
        prefix: str = "",
        patience: int | None = None,
    ) -> None:
        self._store = store
        self._intervals = intervals
        self._stop = stop
        self._monitor = monitor
        self._bar = bar
        self._prefix = prefix
        self._patience = patience
        self.best_step: int | None = None
        """Step with the lowest validation loss so far."""
        self.best_loss = math.inf
        self.since_best = 0
        """Validations in a row without a lower loss."""
        self._validated = 0  # last step with a complete validation
        self._row: dict[str, float] = {}  # log line of the step, not written yet
        self._failures = 0  # failed saves in a row
        self._clock = (0.0, 0)  # time and step of the last log line
        self._saving = _SaveTimer()
        self._dropped = 0  # log lines that could not be written

    @property
    def state_key(self) -> str:
        """Name of this callback in training states; earlier versions wrote it."""
        return "Keeper"

    def state_dict(self) -> dict[str, Any]:
        """Returns what training states keep of this callback."""
        return {
            "best_step": self.best_step,
            "best_loss": self.best_loss,
            "since_best": self.since_best,
            "validated": self._validated,
            "row": self._row,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        self.best_step, self.best_loss = state_dict["best_step"], state_dict["best_loss"]
        self.since_best = state_dict["since_best"]
        self._validated, self._row = state_dict["validated"], state_dict["row"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Installs the signal handlers after Lightning; finishes a step that was stopped during its validation."""
        self._stop.install()
        self._clock = (time.monotonic(), trainer.global_step)
        self._saving.begin()
        step = trainer.global_step
        if step == 0:
            return
        if self.best_step is not None and self._store.find(self.best_step) is None:
            log.warning(
                "the best training state (step %d) is damaged; the best is selected among later steps",
                self.best_step,
            )
            self.best_step, self.best_loss, self.since_best = None, math.inf, 0
        self._store.resumed(step, self.best_step)
        if self._intervals.is_due(step, self._intervals.val_every) and self._validated < step:
            self._finish_step(trainer, pl_module, step)
        trainer.should_stop = self._patience_is_exhausted()  # if the run was killed after it stopped early

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reports how many log lines are missing."""
        if self._dropped:
            lines = count(self._dropped, "line")
            log.warning("%s of the log could not be written and %s missing", lines, verb(self._dropped, "is", "are"))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs, validates, saves and stops, as due."""
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
        stopping, exhausted = self._stop.agree(trainer), self._patience_is_exhausted()
        if improved or stopping or exhausted or self._intervals.is_due(step, self._intervals.save_every):
            saved = self._save(trainer, step, last=stopping or exhausted or step == self._intervals.steps)
            if not saved:  # weights that are not on disk cannot be loaded as the best
                self.best_step, self.best_loss, self.since_best = best
        if exhausted and step < self._intervals.steps:
            log.info(
                "step %d of %d: training stops early; the validation loss was lowest at step %s and not lower in "
                "the %s since (train.patience)",
                step,
                self._intervals.steps,
                self.best_step,
                count(self.since_best, "validation"),
            )
            trainer.should_stop = True
        elif stopping and step < self._intervals.steps:
            raise self._stop.error(f"at step {step} of {self._intervals.steps}; the same command resumes from there")

    def _patience_is_exhausted(self) -> bool:
        return bool(self._patience) and self.since_best >= (self._patience or 0)

    def _step_row(self, learner: TrainingModule, step: int) -> dict[str, float]:
        now, (then, before) = time.monotonic(), self._clock
        self._clock = (now, step)
        row = {
            "train/loss": learner.last_loss.item(),
            "lr": self._monitor.learning_rate,
            "gradient_norm": float(self._monitor.gradient_norm),
            "seconds_per_step": (now - then) / max(1, step - before),
            **learner.step_metrics(),
        }
        if self._saving.last is not None:
            row["save_seconds"] = self._saving.last
        if self._monitor.skipped:
            steps, were = count(self._monitor.skipped, "step"), verb(self._monitor.skipped, "was", "were")
            log.info("step %d: %s so far %s skipped, with gradients too large for half precision", step, steps, were)
        return row

    def _validate(self, trainer: L.Trainer, learner: TrainingModule, step: int) -> bool:
        """Computes the validation loss; returns whether it is the lowest so far."""

        def poll() -> None:
            # Ranks may have different numbers of batches, so several ranks stop together, after validation.
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
        """Saves a training state; returns whether that succeeded.

        Raises:
            ResourceError: At the second failure in a row, or if `last`.
        """
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
        """Continues without a log line that cannot be written; warns about the first."""
        try:
            yield
        except OSError as error:
            self._dropped += 1
            if self._dropped == 1:
                log.warning(
                    "the log cannot be written (%s: %s); training continues and reports at its end how many lines are "
                    "missing",
                    error.filename or "its folder",
                    error.strerror or error,
                )


class _SaveTimer:
    """Time that saving takes, and its share of the total."""

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
        """Warns once if saving takes more than a tenth of the time and more than a second."""
        if self._hinted or self.last is None or self.last < _LONG_SAVE or self._share <= _LARGE_SHARE:
            return
        self._hinted = True
        log.warning(
            "saving a training state takes %.1f s, %.0f %% of the training time; raise train.save_every, or put the "
            "run on a faster disk",
            self.last,
            100 * self._share,
        )


_LONG_SAVE = 1.0
_LARGE_SHARE = 0.1


def _learner(module: L.LightningModule) -> TrainingModule:
    assert isinstance(module, TrainingModule)
    return module
