"""Training on several processes: devices, preparation by the first rank, gather, batch norm, lost processes."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from subprocess import Popen
from typing import Any, TypeVar

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.lsf import LSFEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed  # pyright: ignore[reportPrivateUsage]
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher  # pyright: ignore[reportPrivateUsage]
from torch import Tensor, nn
from torch._C._distributed_c10d import TCPStore  # torch.distributed has it without exporting it

from cleft.config import TrainConfig
from cleft.errors import CleftError, ConfigError, OtherRankFailed, ResourceError
from cleft.grammar import count
from cleft.launch import LAUNCHER_VARIABLES, Launch, count_processes, find_launch

log = logging.getLogger(__name__)

_PORT = 29500
"""Default port."""
_MEET_SECONDS = 300
_LAST_WORD_SECONDS = 30
_SOON = 10
_LOST = re.compile(
    r"gloo|nccl|process group|connection (closed|reset|refused)|broken pipe|timed? ?out|socket|store", re.IGNORECASE
)
"""Words in the messages of failed collective operations."""


def resolve_devices(train: TrainConfig) -> TrainConfig:
    """Returns the settings with the numbers of devices and machines, `auto` replaced.

    Raises:
        ConfigError: If they differ from what the launcher started, or this machine cannot train in this way.
    """
    devices, nodes = count_processes(train.devices, train.nodes)
    settled = replace(train, devices=devices, nodes=nodes)
    check_hardware(settled)
    return settled


def check_hardware(train: TrainConfig) -> None:
    """Checks that this machine supports accelerator, precision and strategy.

    Args:
        train: As returned by `resolve_devices` or `one_device`.

    Raises:
        ConfigError: Names the setting and the valid values.
    """
    cards = torch.cuda.device_count()
    has_card = cards > 0 or torch.backends.mps.is_available()
    on_card = has_card and train.accelerator != "cpu"
    if train.accelerator == "gpu" and not has_card:
        raise ConfigError("train.accelerator=gpu, but torch sees no card here; set auto or cpu (cleft doctor)")
    where = "on a CPU" if train.accelerator == "cpu" else "here, where torch sees no card"
    if train.precision == "16-mixed" and not on_card:
        raise ConfigError(f"train.precision=16-mixed does not work {where}; set bf16-mixed or 32-true")
    if train.strategy == "fsdp" and not (cards and on_card):
        raise ConfigError(f"train.strategy=fsdp does not work {where}; set auto or ddp")
    assert train.devices != "auto"
    if on_card and cards and train.devices > cards:
        raise ConfigError(
            f"train.devices={train.devices}, but torch sees {count(cards, 'card')} here; set "
            f"train.devices={cards} or less, start fewer processes, or set train.accelerator=cpu"
        )


def one_device(train: TrainConfig) -> TrainConfig:
    """Returns the settings of a stage that always uses one device."""
    return replace(train, devices=1, nodes=1, strategy="auto")


def uses_gpu(train: TrainConfig) -> bool:
    """Returns whether these settings train on a GPU on this machine."""
    return train.accelerator != "cpu" and torch.cuda.is_available()


@contextmanager
def first_rank_first(timeout: float) -> Generator[Callable[[], None]]:
    """Runs preparation on the first rank of a launcher alone; the others start when it is ready.

    So folders are created, images decoded and errors reported once.

    Args:
        timeout: Seconds to wait for a connection.

    Yields:
        Function to call when the others may start; they also start when the body ends.

    Raises:
        OtherRankFailed: On the other ranks, if the body raised on the first, which reports the error.
        ResourceError: If the processes cannot connect.
    """
    launch = find_launch()
    if launch is None or launch.world_size == 1:
        yield lambda: None
        return
    address, port = _main_address(launch)
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address, str(port)
    store = _connect(launch, address, port, min(timeout, _MEET_SECONDS))
    key = "cleft/first"
    if launch.rank > 0:
        _wait_for(store, key, f"{address}:{port}")
        reply = store.get(key).decode()
        store.add(f"{key}/read", 1)
        if reply != "ready":
            raise OtherRankFailed(int(reply))
        try:
            yield lambda: None
        except CleftError as error:
            error.rank = launch.rank
            raise
        return

    def ready() -> None:
        store.set(key, "ready")
        _gather_readers(store, f"{key}/read", launch, f"{address}:{port}", min(timeout, _MEET_SECONDS))

    try:
        yield ready
    except BaseException as error:
        if not store.check([key]):
            store.set(key, str(getattr(error, "exit_code", 1)))
            _wait_for_readers(store, f"{key}/read", launch.world_size - 1, _LAST_WORD_SECONDS)
        raise
    if not store.check([key]):
        ready()


def _gather_readers(store: TCPStore, key: str, launch: Launch, place: str, seconds: float) -> None:
    """Waits until the other ranks have read the store.

    Raises:
        ResourceError: If one of them does not connect.
    """
    if not _wait_for_readers(store, key, launch.world_size - 1, min(seconds, _SOON)):
        missing = launch.world_size - 1 - store.add(key, 0)
        log.warning("waiting for %d of %d processes to connect to %s", missing, launch.world_size, place)
        if not _wait_for_readers(store, key, launch.world_size - 1, seconds):
            missing = launch.world_size - 1 - store.add(key, 0)
            left_over = ", ".join(name for name in LAUNCHER_VARIABLES if name in os.environ)
            raise ResourceError(
                f"{missing} of {launch.world_size} processes did not connect to {place} within {seconds:g} s; see "
                f"that {launch.launcher} started all of them and that they can reach this address. If this process "
                f"is alone, unset what a launcher sets ({left_over})"
            )


def _wait_for_readers(store: TCPStore, key: str, count: int, seconds: float) -> bool:
    """Waits for `count` other processes to read the store; returns whether they did."""
    deadline = time.monotonic() + seconds
    with contextlib.suppress(RuntimeError):
        while store.add(key, 0) < count:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
    return True


def _main_address(launch: Launch) -> tuple[str, int]:
    """Returns host and port of the first rank."""
    typed = os.environ.get("MASTER_PORT", "")
    if typed and not typed.isdigit():
        raise ConfigError(f"environment variable MASTER_PORT={typed!r} is not a number; set a free port, or unset it")
    port = int(typed or _PORT)
    if "MASTER_ADDR" in os.environ:
        return os.environ["MASTER_ADDR"], port
    if launch.launcher == "srun":
        job = os.environ.get("SLURM_JOB_ID", "")
        port = 15000 + int(job[-4:]) if job.isdigit() and not typed else port
        names = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST") or "127.0.0.1"
        return SLURMEnvironment.resolve_root_node_address(names), port
    if launch.launcher == "jsrun":
        lsf = LSFEnvironment()
        return lsf.main_address, lsf.main_port
    if launch.nodes > 1:
        raise ConfigError(
            f"{launch.launcher} started processes on {launch.nodes} machines and does not say where the first one is; "
            f"set MASTER_ADDR to its host, and MASTER_PORT to a free port there"
        )
    return "127.0.0.1", port


def _connect(launch: Launch, address: str, port: int, seconds: float) -> TCPStore:
    held_by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        return TCPStore(
            address,
            port,
            is_master=launch.rank == 0 and not held_by_launcher,
            timeout=timedelta(seconds=seconds),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except RuntimeError as error:
        raise ResourceError(
            f"rank {launch.rank} of {launch.world_size} cannot use {address}:{port}, where the processes connect "
            f"({_first_line(error)}); set MASTER_ADDR and MASTER_PORT to a host and a free port that all can reach"
        ) from error


def _wait_for(store: TCPStore, key: str, place: str) -> None:
    try:
        # Not store.wait: it handles signals only after its timeout.
        while not store.check([key]):
            time.sleep(0.1)
    except RuntimeError as error:
        raise ResourceError(
            f"the first process, which {place} belongs to, ended while it prepared; its own message says why"
        ) from error


class LauncherEnvironment(ClusterEnvironment):
    """Lightning environment of processes that a launcher started."""

    def __init__(self, launch: Launch) -> None:
        super().__init__()
        self._launch = launch

    @property
    def creates_processes_externally(self) -> bool:
        """Lightning starts none."""
        return True

    @property
    def main_address(self) -> str:
        """Host of the first process."""
        return _main_address(self._launch)[0]

    @property
    def main_port(self) -> int:
        """Port on it."""
        return _main_address(self._launch)[1]

    @staticmethod
    def detect() -> bool:
        """Whether a launcher started this process."""
        return find_launch() is not None

    def world_size(self) -> int:
        """Processes on all machines."""
        return self._launch.world_size

    def set_world_size(self, size: int) -> None:
        """Does nothing: the launcher decides."""

    def global_rank(self) -> int:
        """Of this process."""
        return self._launch.rank

    def set_global_rank(self, rank: int) -> None:
        """Does nothing: the launcher decides."""

    def local_rank(self) -> int:
        """Of this process on its machine."""
        return self._launch.local_rank

    def node_rank(self) -> int:
        """Of this machine."""
        return self._launch.rank // self._launch.local_size


def cluster_environment(train: TrainConfig) -> ClusterEnvironment:
    """Returns the Lightning environment: that of the launcher, or Lightning's own.

    Args:
        train: With numbers of devices and machines. A stage of one process does not look at the launcher.
    """
    launch = find_launch()
    return LauncherEnvironment(launch) if launch is not None and _world_size(train) > 1 else LightningEnvironment()


class ReportingDDP(DDPStrategy):
    """DDP strategy that reports when a process that Lightning started ends; Lightning kills all without a message."""

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = _ReportingLauncher(self.cluster_environment, self.num_processes, self.num_nodes)


class _ReportingLauncher(_SubprocessScriptLauncher):
    def launch(self, function: Callable[..., Any], *args: Any, trainer: L.Trainer | None = None, **kwargs: Any) -> Any:
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        done = threading.Event()
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
            threading.Thread(target=_watch_children, args=(self.procs, done), daemon=True).start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        try:
            return function(*args, **kwargs)
        finally:
            done.set()


def _watch_children(children: list[Popen[Any]], done: threading.Event) -> None:
    """Ends this process if a child failed and the main thread hangs in a collective operation."""
    while not done.wait(1):
        failed = [(rank, child) for rank, child in enumerate(children, start=1) if child.poll()]
        if failed and not done.wait(6):  # usually the main thread notices by itself, and reports more
            rank, child = failed[0]
            print(f"error: {_describe_end(rank, child.pid, child.returncode)}; {_RESUME}", file=sys.stderr, flush=True)
            for _, other in enumerate(children):
                other.kill()
            os._exit(ResourceError.exit_code)


_RESUME = "the last training state is intact, and the same command resumes from it"


class RankProcesses(Callback):
    """Records the processes of all ranks, so that a lost one can be named."""

    def __init__(self) -> None:
        self._known: list[tuple[str, int]] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Exchanges host and process id."""
        if trainer.world_size > 1:
            known: list[Any] = [None] * trainer.world_size
            dist.all_gather_object(known, (socket.gethostname(), os.getpid()))
            self._known = known

    def explain(self, error: RuntimeError) -> CleftError | None:
        """Returns the error that explains a failed collective operation, or None for other errors."""
        text = str(error)
        if isinstance(error, dist.DistStoreError | dist.DistNetworkError) or (not self._known and _LOST.search(text)):
            place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            return ResourceError(
                f"the processes did not connect at {place} ({_first_line(error)}); see that every rank runs and that "
                f"all can reach this address"
            )
        if not self._known or not (isinstance(error, dist.DistError) or _LOST.search(text)):
            return None
        lost = self._lost()
        what = "; ".join(lost) if lost else f"the processes lost contact ({_first_line(error)})"
        return ResourceError(f"{what}; {_RESUME}")

    def _lost(self) -> list[str]:
        """Describes processes of this machine that have ended; waits up to two seconds for one that is ending."""
        here = [
            (rank, process)
            for rank, (host, process) in enumerate(self._known)
            if host == socket.gethostname() and process != os.getpid()
        ]
        for _ in range(20):
            gone = [(rank, process, _exit_status(process)) for rank, process in here if _has_ended(process)]
            if gone:
                return [_describe_end(*each) for each in gone]
            time.sleep(0.1)
        return []


def _has_ended(process: int) -> bool:
    if os.name == "nt":  # os.kill would end the process there, whatever the signal
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _stat(process)[:1] == ["Z"]


def _exit_status(process: int) -> int | None:
    """Returns the exit status as `Popen.returncode` while the process is a zombie, else None."""
    fields = _stat(process)
    return os.waitstatus_to_exitcode(int(fields[-1])) if fields[:1] == ["Z"] else None


def _stat(process: int) -> list[str]:
    """Returns the fields of /proc/<process>/stat from the state on; none if there is no such file."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _describe_end(rank: int, process: int, status: int | None) -> str:
    who = f"rank {rank} (process {process})"
    if status is None:
        return f"{who} ended; its own message, or that of the launcher, says why"
    if status < 0:
        return f"{who} was killed by {signal.Signals(-status).name}"
    return f"{who} ended with exit code {status}; its own message says why"


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return line if len(line) < 200 else f"{line[:197]}…"


def _world_size(train: TrainConfig) -> int:
    assert train.devices != "auto"
    assert train.nodes != "auto"
    return train.devices * train.nodes


def convert_sync_batchnorm(module: nn.Module) -> None:
    """Replaces every batch norm in `module` by `CpuSyncBatchNorm`. On GPUs, Lightning uses torch's `SyncBatchNorm`.

    Args:
        module: Changed in place; names, weights and buffers are kept.
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm) and not isinstance(child, CpuSyncBatchNorm):  # pyright: ignore[reportPrivateUsage]
                setattr(parent, name, CpuSyncBatchNorm(child))


class CpuSyncBatchNorm(nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage, reportUntypedBaseClass]
    """Batch norm with the statistics of all ranks, on the CPU; ranks may have different numbers of rows.

    Args:
        norm: Batch norm whose weights and buffers are used.
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:  # pyright: ignore[reportPrivateUsage]
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.weight, self.bias = norm.weight, norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(self, name, getattr(norm, name))
        self.training = norm.training

    def forward(self, input: Tensor) -> Tensor:
        """Normalises `[b, C, ...]` with the mean and variance of each channel over all ranks."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            precise = input.to(torch.promote_types(input.dtype, torch.float32))
            values = precise.transpose(0, 1).flatten(1)  # [C, b * ...]
            count = values.new_full((1,), values.shape[1])
            dist.all_reduce(count)
            mean = _sum_over_ranks(values.sum(1)) / count  # [C]
            # Squares around the mean: the difference of two large sums would lose precision.
            variance = _sum_over_ranks((values - mean[:, None]).square().sum(1)) / count
            self._remember(mean.detach(), variance.detach(), count)
            shape = (1, -1, *(1 for _ in input.shape[2:]))
            scale = (variance + self.eps).rsqrt()
            normed = (precise - mean.view(shape)) * scale.view(shape)
            if self.affine:
                normed = normed * self.weight.view(shape) + self.bias.view(shape)
        return normed.to(input.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Does nothing: any number of dimensions is allowed."""

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        unbiased = variance * count / (count - 1).clamp_min(1)
        self.running_mean += (mean - self.running_mean) * share
        self.running_var += (unbiased - self.running_var) * share


def _sum_over_ranks(share: Tensor) -> Tensor:
    total = _Sum.apply(share)
    assert isinstance(total, Tensor)
    return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = share.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


Rows = TypeVar("Rows", bound=tuple[Any, ...])


def gather_rows(read: Rows) -> Rows:
    """Joins the rows of all ranks, in the order of ranks, for each tensor of a named tuple.

    Each rank computes the loss of the complete batch. The backward pass adds up the gradients that all ranks send to a
    row, and data parallelism then divides by the number of ranks: what remains is the gradient of one process. Putting
    one's own rows back after a gather without gradient would leave it divided by the number of ranks.

    Args:
        read: Tensors `[b, ...]` with as many rows on every rank; a second axis of another length, such as the words of
            the longest text, is padded with zeros to the longest. Other values are the same on all ranks and stay.

    Returns:
        Tensors `[ranks * b, ...]`.
    """
    return type(read)(*(_Gather.apply(_padded(part)) if isinstance(part, Tensor) else part for part in read))


def _padded(share: Tensor) -> Tensor:
    if share.ndim < 2:
        return share
    longest = torch.tensor(share.shape[1], device=share.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    missing = int(longest) - share.shape[1]
    return torch.cat([share, share.new_zeros(len(share), missing, *share.shape[2:])], dim=1) if missing else share


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        parts = [torch.empty_like(share) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, share.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
