"""Training by Lightning, from settings: exact when it is resumed, quiet when nobody watches, sent nowhere.

One training is one epoch of `steps` batches. Lightning restores weights, optimiser, schedule and its counters; order
and augmentation of samples are functions of the step; dropout is seeded at the start of each step. So resuming needs
one state and one integer (docs/decisions/0052).
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
    """How one training goes."""

    intervals: Intervals
    seed: int
    clip_norm: float | None
    train: TrainConfig
    """Devices and precision; numbers of devices and machines, no `auto`."""
    memory: str
    """Settings that decide how much memory a step needs, with their values."""
    patience: int | None = None
    """Validations in a row without a lower validation loss after which training stops early."""
    columns: Sequence[str] = ()
    """Quantities the stage logs besides `LOGGED`."""
    prefix: str = ""
    """In front of every logged name."""


@dataclass(frozen=True, kw_only=True)
class TrainingOutcome:
    """What came of a training. The learner holds the best weights."""

    best_step: int
    """Step whose weights had the lowest validation loss; the last where nothing was validated."""
    best_loss: float | None
    """That loss."""
    last_step: int
    """Last step that was made; before the planned end where training stopped early."""

    def describe(self, steps: int, chosen_by: str) -> str:
        """Describes which weights are kept.

        Args:
            steps: Planned.
            chosen_by: What `best_loss` is.

        Example:
            >>> Outcome(best_step=75, best_loss=1.5, last_step=400).kept(400, "validation loss")
            'kept the weights of step 75 of 400, which have the lowest validation loss (1.5000)'
        """
        early = f" (stopped early at step {self.last_step})" if self.last_step < steps else ""
        if self.best_loss is None:
            return f"kept the weights of the last step, {self.best_step} of {steps}{early}; nothing was validated"
        return (
            f"kept the weights of step {self.best_step} of {steps}{early}, which have the lowest {chosen_by} "
            f"({self.best_loss:.4f})"
        )


BatchSource = Callable[[int, int, int], Iterable[Any]]
"""From (first step, rank, world size) to this rank's share of the batches of all steps from there on."""


def train(
    learner: TrainingModule, batches: BatchSource, run: Run, plan: TrainingPlan, stop: StopFlag
) -> TrainingOutcome:
    """Trains from the newest training state of a run, or from the beginning, to the end.

    Args:
        learner: Freshly built, with the same weights each time; leaves with the best ones.
        batches: What to learn from; asked once the ranks know each other.
        run: Where states and log lie.
        plan: Steps, intervals, devices.
        stop: Tells that a signal arrived.

    Raises:
        Interrupted, Terminated: If a signal arrived; the state is saved.
        NumericsError: If a loss or gradient is not finite; the update was not made.
        ResourceError: If states cannot be written.
        CheckpointError: If no training state is whole, or it does not fit.
    """
    store = StateStore(run.folder / "states")
    state = store.latest(repair=is_first())
    first_step = state.step if state else 0
    if first_step < plan.intervals.steps:
        # Weights, two moments of the optimiser, and the file's own bookkeeping.
        store.check_room(3 * tensor_bytes(trainable_parameters(learner)) + 2**16)
        if state is not None:
            log.info("%s: going on from step %d of %d", run.folder, first_step, plan.intervals.steps)
        several = plan.train.devices != 1 or plan.train.nodes != 1
        if several and not uses_gpu(plan.train):
            convert_sync_batchnorm(learner)
        peers = RankProcesses()
        with _deterministic(plan.train):
            trainer = _build_trainer(run, store, plan, stop, first_step, peers)
            try:
                trainer.fit(
                    learner,
                    StepBatches(batches, plan.intervals.steps, first_step, trainer),
                    ckpt_path=None if state is None else str(state.path),
                    weights_only=True,
                )
            except (MemoryError, RuntimeError) as error:
                explained = _explain(error, trainer, plan, store, peers)
                if explained is None:
                    raise
                raise explained from error
    outcome = _load_best(learner, store)
    if is_first():
        log.info("%s: %s", run.folder, outcome.describe(plan.intervals.steps, learner.selection_metric))
    return outcome


def _explain(
    error: MemoryError | RuntimeError, trainer: L.Trainer, plan: TrainingPlan, store: StateStore, peers: RankProcesses
) -> CleftError | None:
    """Error that reports a failure of the machine to the user; None for any other error."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or _NO_MEMORY.search(str(error)):
        device = trainer.strategy.root_device
        return ResourceError(
            f"step {trainer.global_step}: {'memory' if device.type == 'cpu' else f'memory of {device}'} ran out with "
            f"{plan.memory}; last good state: {describe_last_state(store)}. Lower one of them, or set "
            f"image.gradient_checkpointing=true"
        )
    return explain_worker_error(error) or peers.explain(error)


_NO_MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory|cannot allocate memory", re.IGNORECASE)


class StepBatches:
    """The batches that are left, counted as Lightning counts them: from the beginning of the training.

    Args:
        batches: What to learn from.
        steps: Of the whole training.
        first_step: Steps that are done.
        trainer: Knows rank and world size when iteration begins.
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
        """Nothing: the position is the step. Having the method tells Lightning that these batches can resume."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to take back."""


class _StateIO(CheckpointIO):
    """Lets Lightning save and load through a `StateStore`; the name of a path to save to is the step."""

    def __init__(self, store: StateStore) -> None:
        self._store = store

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        self._store.save(checkpoint, int(Path(path).name))

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return self._store.load(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        raise NotImplementedError("the store removes its own states")


def _build_trainer(
    run: Run, store: StateStore, plan: TrainingPlan, stop: StopFlag, first_step: int, peers: RankProcesses
) -> L.Trainer:
    watch = StepMonitor(store)
    bar = ProgressBar(run.stage, plan.intervals.steps)
    keeper = StepEnd(store, plan.intervals, stop=stop, watch=watch, bar=bar, prefix=plan.prefix, patience=plan.patience)
    assert plan.train.nodes != "auto"
    return L.Trainer(
        accelerator=plan.train.accelerator,
        devices=plan.train.devices,
        num_nodes=plan.train.nodes,
        strategy=_strategy(plan.train),
        precision=plan.train.precision,
        max_epochs=1,
        gradient_clip_val=plan.clip_norm,
        # The keeper is last: it saves the results of the others.
        callbacks=[peers, StepSeeds(plan.seed, run.stage), watch, bar, keeper],
        logger=build_loggers(run.log_folder, [f"{plan.prefix}{name}" for name in (*LOGGED, *plan.columns)], first_step),
        # Not Lightning's own for SLURM: its handler would save from inside a signal.
        plugins=[_StateIO(store), cluster_environment(plan.train)],
        sync_batchnorm=uses_gpu(plan.train),
        default_root_dir=run.folder,
        log_every_n_steps=1,  # the keeper logs
        limit_val_batches=0,  # the keeper validates, at a place from which a run can go on
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _strategy(config: TrainConfig) -> str | Strategy:
    """Lightning's strategy; several devices hold the whole model each, unless it is shared out."""
    several = config.devices != 1 or config.nodes != 1
    if config.strategy == "ddp" or (config.strategy == "auto" and several):
        # A mask token or a pooler that is never used must not stop the others; whole parts are watched (G10).
        return ReportingDDP(find_unused_parameters=True, timeout=timedelta(seconds=config.timeout))
    return config.strategy


def _load_best(learner: TrainingModule, store: StateStore) -> TrainingOutcome:
    """Gives the learner the weights of the best state the newest one knows of."""
    newest = store.latest(repair=False)
    assert newest is not None, "the last step saves"
    checkpoint = store.load(newest.path)
    kept = checkpoint["callbacks"]["Keeper"]
    best_step: int | None = kept["best_step"]
    if best_step is not None and best_step != newest.step:
        path = store.find(best_step)
        if path is None:
            raise CheckpointError(
                f"{store.folder}: the state of step {best_step}, the best one, is missing or damaged; "
                f"copy it back, or remove the newer states to train from an older one"
            )
        checkpoint = store.load(path)
    check_state_names(learner, checkpoint["state_dict"])
    learner.load_state_dict(checkpoint["state_dict"], strict=False)
    return TrainingOutcome(
        best_step=newest.step if best_step is None else best_step,
        best_loss=None if best_step is None else kept["best_loss"],
        last_step=newest.step,
    )


@contextmanager
def _deterministic(config: TrainConfig) -> Generator[None]:
    """Deterministic kernels, the caller's generator untouched, and Lightning speaking only when something is wrong."""
    enabled, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill: bool = getattr(kernels, "fill_uninitialized_memory")  # noqa: B009 the module replaces itself at import
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may add in another order
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # Kernels without a deterministic form are used all the same; exact resuming is promised on the CPU.
        warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
        # Lightning 2.6 asks torch a question in a form that torch 2.13 has renamed.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        # A frozen tower in evaluation mode is meant.
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
