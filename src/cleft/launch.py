"""Launchers: processes started by torchrun, srun or mpirun, read from the environment variables that these set.

Only the standard library is used, so that this is known before PyTorch is loaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cleft.errors import ConfigError
from cleft.grammar import count


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Processes that were started together, and the rank of this one."""

    launcher: str
    """Name for messages, such as `torchrun`."""
    world_size: int
    """Number of processes on all machines."""
    rank: int
    """Rank of this process, from 0 to `world_size` - 1."""
    local_rank: int
    """Rank of this process on its machine."""
    local_size: int
    """Number of processes on this machine."""

    @property
    def nodes(self) -> int:
        """Number of machines.

        Raises:
            ConfigError: If they do not run the same number of processes each.
        """
        if self.world_size % self.local_size:
            raise ConfigError(
                f"{self.launcher} started {self.world_size} processes, {self.local_size} of them on this machine; "
                f"start the same number on every machine"
            )
        return self.world_size // self.local_size


def find_launch(variables: Mapping[str, str] = os.environ) -> Launch | None:
    """Returns the processes that a launcher started, or None if this process was started without one.

    Supported are torchrun (and others that set `RANK` and `WORLD_SIZE`, such as Kubeflow), srun of SLURM, jsrun of LSF,
    and mpirun of Open MPI, MPICH and Intel MPI. torchrun has precedence, because srun may start it.

    Raises:
        ConfigError: If a variable does not have the value that its launcher sets.

    Example:
        >>> find_launch({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}).nodes
        2
        >>> find_launch({}) is None
        True
    """
    if "RANK" in variables and "WORLD_SIZE" in variables:
        return _torchrun(variables)
    if "SLURM_PROCID" in variables and "SLURM_NTASKS" in variables:
        return _slurm(variables)
    for launcher, names in _MPI.items():
        if names[0] in variables and names[1] in variables:
            found = _read(launcher, variables, names)
            return found if found.world_size > 1 else None
    return None


def is_first(variables: Mapping[str, str] = os.environ) -> bool:
    """Returns whether this process is the first, or the only one, of the processes of a command."""
    launch = find_launch(variables)
    if launch is not None:
        return launch.rank == 0
    return variables.get("LOCAL_RANK", "0") == "0"  # Lightning sets it for the processes that it starts itself


def count_processes(devices: int | Literal["auto"], nodes: int | Literal["auto"]) -> tuple[int, int]:
    """Returns the numbers of processes per machine and of machines; `auto` is what the launcher started, or one.

    Args:
        devices: `train.devices`.
        nodes: `train.nodes`.

    Raises:
        ConfigError: If a number differs from what the launcher started, or several machines have no launcher.
    """
    launch = find_launch()
    if launch is None:
        if nodes != "auto" and nodes > 1:
            raise ConfigError(
                f"train.nodes={nodes}: start the command on every machine by a launcher, such as "
                f"torchrun --nnodes {nodes} --nproc-per-node <GPUs> -m cleft pretrain ..., or srun"
            )
        tasks = os.environ.get("SLURM_NTASKS", "1")
        if devices == "auto" and tasks != "1" and _is_batch_script(os.environ):
            raise ConfigError(
                f"SLURM reserved {tasks} tasks, but the command was not started by srun and runs in one process; put "
                f"srun before it, reserve one task, or set train.devices"
            )
        return (1 if devices == "auto" else devices), 1
    for name, typed, started, where in (
        ("devices", devices, launch.local_size, count(launch.local_size, "process", "processes") + " on this machine"),
        ("nodes", nodes, launch.nodes, count(launch.nodes, "machine")),
    ):
        if typed not in ("auto", started):
            raise ConfigError(
                f"train.{name}={typed}, but {launch.launcher} started {launch.world_size} processes: {where}"
                f"; leave train.{name} out (auto), or set it to {started}"
            )
    return launch.local_size, launch.nodes


_MPI = {
    "jsrun": ("JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_LOCAL_SIZE"),
    "mpirun (Open MPI)": (
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "mpirun": ("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
}
"""Launcher to its variables: world size, rank, local rank, local size."""


LAUNCHER_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_USE_AGENT_STORE",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    *(name for names in _MPI.values() for name in names),
)
"""Variables that make a process one of several."""


def _torchrun(variables: Mapping[str, str]) -> Launch:
    launcher = "torchrun" if "TORCHELASTIC_RUN_ID" in variables else "the launcher"
    if "LOCAL_RANK" not in variables:  # Kubeflow's training operator: one process per machine
        variables = {**variables, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    return _read(launcher, variables, ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))


def _slurm(variables: Mapping[str, str]) -> Launch | None:
    if variables.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    if _is_batch_script(variables):
        return None
    size = variables.get("SLURM_STEP_NUM_TASKS", variables["SLURM_NTASKS"])
    here = variables.get("SLURM_STEP_TASKS_PER_NODE") or variables.get("SLURM_NTASKS_PER_NODE")
    nodes = variables.get("SLURM_STEP_NUM_NODES") or variables.get("SLURM_NNODES") or "1"
    local = re.match(r"\d*", here or "")  # as in 2(x3)
    whole = {
        **variables,
        "SLURM_LOCALID": variables.get("SLURM_LOCALID", "0"),
        "size": size,
        "local": (local and local[0])
        or str(max(1, int(size) // int(nodes)) if size.isdigit() and nodes.isdigit() else 1),
    }
    found = _read("srun", whole, ("size", "SLURM_PROCID", "SLURM_LOCALID", "local"))
    return found if found.world_size > 1 else None


def _is_batch_script(variables: Mapping[str, str]) -> bool:
    """Returns whether a SLURM batch script runs the command itself: one process, whatever was reserved."""
    by_srun = "SLURM_STEP_ID" in variables or "SLURM_STEP_NUM_TASKS" in variables
    return "SLURM_TASK_PID" in variables and not by_srun


def _read(launcher: str, variables: Mapping[str, str], names: tuple[str, str, str, str]) -> Launch:
    size, rank = (_number(variables, name) for name in names[:2])
    local_rank = _number(variables, names[2]) if names[2] in variables else rank
    local_size = _number(variables, names[3]) if names[3] in variables else size
    if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
        raise ConfigError(
            f"{launcher}: rank {rank} of {size} processes, on this machine {local_rank} of {local_size}, is "
            f"contradictory; unset {', '.join(names)}, or start the command by its launcher"
        )
    return Launch(launcher=launcher, world_size=size, rank=rank, local_rank=local_rank, local_size=local_size)


def _number(variables: Mapping[str, str], name: str) -> int:
    text = variables[name].strip()
    if not text.isdigit():
        raise ConfigError(
            f"environment variable {name}={text!r} is not a number; unset it, or set it as a launcher does"
        )
    return int(text)
