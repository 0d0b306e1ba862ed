"""The training loop, run by Lightning: bitwise resume, saved states, explained failures.

A training is one epoch of `steps` batches. Lightning restores weights, optimiser, schedule and counters; the order and
augmentation of samples are functions of the step; random generators are seeded at each step. So resuming needs one
training state and its step (docs/decisions/0052).
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.strategies import Strategy
from torch.utils import deterministic as kernels

from cleft.config import TrainConfig
from cleft.data.batches import explain_worker_error
from cleft.errors import CheckpointError, CleftError, ResourceError
from cleft.launch import is_first
from cleft.training.callbacks import (
    Intervals,
    ProgressBar,
    StepEnd,
    StepMonitor,
    StepSeeds,
    StopFlag,
    describe_last_state,
)
from cleft.training.distributed import (
    RankProcesses,
    ReportingDDP,
    cluster_environment,
    convert_sync_batchnorm,
    uses_gpu,
)
from cleft.training.lightning_module import TrainingModule, check_state_names, trainable_parameters
from cleft.training.loggers import build_loggers
from cleft.training.run_folder import Run
from cleft.training.training_state import StateStore, tensor_bytes

log = logging.getLogger(__name__)

LOGGED = ("train/loss", "val/loss", "lr", "gradient_norm", "seconds_per_step", "save_seconds")
"""Quantities that every stage logs."""


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Steps, intervals, devices and logged quantities of a training."""

    intervals: Intervals
    seed: int
    clip_norm: float | None
    train: TrainConfig
    """Devices and precision; `devices` and `nodes` are numbers, not `auto`."""
    memory: str
    """Settings that decide how much memory a step needs, with their values, for messages."""
    patience: int | None = None
    """Validations in a row without a lower validation loss after which training stops early."""
    columns: Sequence[str] = ()
    """Quantities that the stage logs in addition to `LOGGED`."""
    prefix: str = ""
    """Prefix of every logged name."""


@dataclass(frozen=True, kw_only=True)
class TrainingOutcome:
    """Result of a training, after which the module holds the best weights."""

    best_step: int
    """Step with the lowest validation loss; the last step if there was no validation."""
    best_loss: float | None
    """Lowest validation loss; None if there was no validation."""
    last_step: int
    """Last step; below the planned number if training stopped early."""

    def describe(self, steps: int, metric: str) -> str:
        """Describes which weights are kept.

        Args:
            steps: Planned steps.
            metric: Name of what `best_loss` measures.

        Example:
            >>> TrainingOutcome(best_step=75, best_loss=1.5, last_step=400).describe(400, "validation loss")
            'kept the weights of step 75 of 400, which have the lowest validation loss (1.5000)'
        """
        early = f" (stopped early at step {self.last_step})" if self.last_step < steps else ""
        if self.best_loss is None:
            return f"kept the weights of the last step, {self.best_step} of {steps}{early}; there was no validation"
        return (
            f"kept the weights of step {self.best_step} of {steps}{early}, which have the lowest {metric} "
            f"({self.best_loss:.4f})"
        )


BatchSource = Callable[[int, int, int], Iterable[Any]]
"""Maps (first step, rank, world size) to the rank's shares of the batches from that step on."""


def train(
    module: TrainingModule, batches: BatchSource, run: Run, plan: TrainingPlan, stop: StopFlag
) -> TrainingOutcome:
    """Trains from the newest training state of a run, or from step 0, to the end.

    Args:
        module: New, with the same initial weights at each call; holds the best weights afterwards.
        batches: Training batches; called once the ranks are connected.
        run: Run folder of the states and the log.
        plan: Steps, intervals, devices.
        stop: Set by a signal.

    Raises:
        Interrupted, Terminated: If a signal arrived; a training state is saved.
        NumericsError: If a loss or gradient is not finite; the update was not made.
        ResourceError: If training states cannot be written, or memory ran out.
        CheckpointError: If all training states are damaged, or do not fit the model.
    """
    store = StateStore(run.folder / "states")
    state = store.latest(repair=is_first())
    first_step = state.step if state else 0
    if first_step < plan.intervals.steps:
        # Weights, two optimiser moments, and the overhead of the file.
        store.check_space(3 * tensor_bytes(trainable_parameters(module)) + 2**16)
        if state is not None:
            log.info("%s: resuming from step %d of %d", run.folder, first_step, plan.intervals.steps)
        several = plan.train.devices != 1 or plan.train.nodes != 1
        if several and not uses_gpu(plan.train):
            convert_sync_batchnorm(module)
        peers = RankProcesses()
        with _deterministic(plan.train):
            trainer = _build_trainer(run, store, plan, stop, first_step, peers)
            try:
                trainer.fit(
                    module,
                    StepBatches(batches, plan.intervals.steps, first_step, trainer),
                    ckpt_path=None if state is None else str(state.path),
                    weights_only=True,
                )
            except (MemoryError, RuntimeError) as error:
                explained = _explain(error, trainer, plan, store, peers)
                if explained is None:
                    raise
                raise explained from error
    outcome = _load_best(module, store)
    if is_first():
        log.info("%s: %s", run.folder, outcome.describe(plan.intervals.steps, module.selection_metric))
    return outcome


def _explain(
    error: MemoryError | RuntimeError, trainer: L.Trainer, plan: TrainingPlan, store: StateStore, peers: RankProcesses
) -> CleftError | None:
    """Returns the error that explains a failure of memory, a worker or a rank; None for any other error."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or _NO_MEMORY.search(str(error)):
        device = trainer.strategy.root_device
        return ResourceError(
            f"step {trainer.global_step}: {'memory' if device.type == 'cpu' else f'memory of {device}'} ran out with "
            f"{plan.memory}; last training state: {describe_last_state(store)}. Lower one of them, or set "
            f"image.gradient_checkpointing=true"
        )
    return explain_worker_error(error) or peers.explain(error)


_NO_MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory|cannot allocate memory", re.IGNORECASE)


class StepBatches:
    """Iterable over the remaining batches, with the length of the complete training, as Lightning counts.

    Args:
        batches: Training batches.
        steps: Steps of the complete training.
        first_step: Steps that are done.
        trainer: Its rank and world size are read when iteration starts.
    """

    def __init__(self, batches: BatchSource, steps: int, first_step: int, trainer: L.Trainer) -> None:
        self._batches = batches
        self._steps = steps
        self._first_step = first_step
        self._trainer = trainer

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches(self._first_step, self._trainer.global_rank, self._trainer.world_size))

    def state_dict(self) -> dict[str, Any]:
        """Returns nothing: the position is the step. Lightning resumes only iterables that have this method."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Does nothing."""


class _StateIO(CheckpointIO):
    """Saves and loads through a `StateStore`; the name of a path to save to is the step."""

    def __init__(self, store: StateStore) -> None:
        self._store = store

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        self._store.save(checkpoint, int(Path(path).name))

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return self._store.load(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        raise NotImplementedError("`StateStore.save` removes old states")


def _build_trainer(
    run: Run, store: StateStore, plan: TrainingPlan, stop: StopFlag, first_step: int, peers: RankProcesses
) -> L.Trainer:
    monitor = StepMonitor(store)
    bar = ProgressBar(run.stage, plan.intervals.steps)
    step_end = StepEnd(
        store, plan.intervals, stop=stop, monitor=monitor, bar=bar, prefix=plan.prefix, patience=plan.patience
    )
    assert plan.train.nodes != "auto"
    return L.Trainer(
        accelerator=plan.train.accelerator,
        devices=plan.train.devices,
        num_nodes=plan.train.nodes,
        strategy=_strategy(plan.train),
        precision=plan.train.precision,
        max_epochs=1,
        gradient_clip_val=plan.clip_norm,
        # `StepEnd` comes last: it saves the state of the others.
        callbacks=[peers, StepSeeds(plan.seed, run.stage), monitor, bar, step_end],
        logger=build_loggers(run.log_folder, [f"{plan.prefix}{name}" for name in (*LOGGED, *plan.columns)], first_step),
        # Not Lightning's SLURM environment: its handler would save from inside a signal.
        plugins=[_StateIO(store), cluster_environment(plan.train)],
        sync_batchnorm=uses_gpu(plan.train),
        default_root_dir=run.folder,
        log_every_n_steps=1,  # `StepEnd` logs
        limit_val_batches=0,  # `StepEnd` validates, where a run can be resumed
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _strategy(config: TrainConfig) -> str | Strategy:
    """Returns Lightning's strategy: DDP for several devices, unless `train.strategy` says otherwise."""
    several = config.devices != 1 or config.nodes != 1
    if config.strategy == "ddp" or (config.strategy == "auto" and several):
        # Unused parameters, such as a mask token or a pooler, are no error; `check_gradients` checks complete parts.
        return ReportingDDP(find_unused_parameters=True, timeout=timedelta(seconds=config.timeout))
    return config.strategy


def _load_best(module: TrainingModule, store: StateStore) -> TrainingOutcome:
    """Loads the best weights that the newest training state names into the module."""
    newest = store.latest(repair=False)
    assert newest is not None, "the last step saves a state"
    checkpoint = store.load(newest.path)
    kept = checkpoint["callbacks"]["Keeper"]
    best_step: int | None = kept["best_step"]
    if best_step is not None and best_step != newest.step:
        path = store.find(best_step)
        if path is None:
            raise CheckpointError(
                f"{store.folder}: the training state of step {best_step}, the best, is missing or damaged; "
                f"copy it back, or remove the newer states to resume from an older one"
            )
        checkpoint = store.load(path)
    check_state_names(module, checkpoint["state_dict"])
    module.load_state_dict(checkpoint["state_dict"], strict=False)
    return TrainingOutcome(
        best_step=newest.step if best_step is None else best_step,
        best_loss=None if best_step is None else kept["best_loss"],
        last_step=newest.step,
    )


@contextmanager
def _deterministic(config: TrainConfig) -> Generator[None]:
    """Uses deterministic kernels, preserves the caller's random generator and silences expected warnings."""
    enabled, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill: bool = getattr(kernels, "fill_uninitialized_memory")  # noqa: B009 the module replaces itself at import
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # otherwise cuBLAS may sum in another order
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # Kernels without a deterministic form are used too: bitwise resume is promised on the CPU only.
        warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
        # Lightning 2.6 uses a name that torch 2.13 deprecates.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        # A frozen encoder is in evaluation mode on purpose.
        warnings.filterwarnings("ignore", message=".*module\\(s\\) in eval mode.*", category=PossibleUserWarning)
        if config.accelerator == "cpu":
            warnings.filterwarnings("ignore", message=".*available but not used.*", category=PossibleUserWarning)
        torch.use_deterministic_algorithms(True, warn_only=True)
        setattr(kernels, "fill_uninitialized_memory", False)  # noqa: B010
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(enabled, warn_only=warns)
            setattr(kernels, "fill_uninitialized_memory", fill)  # noqa: B010
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
