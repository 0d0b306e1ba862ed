"""Launchers are recognised by the variables they set; numbers of devices follow them or are refused."""

import pytest

from cleft.errors import ConfigError
from cleft.launch import LAUNCHER_VARIABLES, count_processes, find_launch, is_first

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "TORCHELASTIC_RUN_ID": "none",
}
SRUN = {
    "SLURM_NTASKS": "6",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "2",
    "SLURM_NNODES": "2",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "3(x2)",
    "SLURM_JOB_NAME": "train",
}
KUBEFLOW = {"RANK": "2", "WORLD_SIZE": "3", "MASTER_ADDR": "worker-0", "MASTER_PORT": "23456"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
MPICH = {"PMI_SIZE": "2", "PMI_RANK": "0", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1"}
JSRUN = {
    "JSM_NAMESPACE_SIZE": "4",
    "JSM_NAMESPACE_RANK": "2",
    "JSM_NAMESPACE_LOCAL_RANK": "0",
    "JSM_NAMESPACE_LOCAL_SIZE": "2",
}


@pytest.fixture
def launched(monkeypatch):
    """Sets the variables of a launcher and no others."""

    def launch(variables):
        for name in (*LAUNCHER_VARIABLES, *SRUN):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return launch


@pytest.mark.parametrize(
    ("variables", "launcher", "expected"),
    [
        (TORCHRUN, "torchrun", (4, 3, 1, 2, 2)),
        (SRUN, "srun", (6, 5, 2, 3, 2)),
        (KUBEFLOW, "the launcher", (3, 2, 0, 1, 3)),
        (OPEN_MPI, "mpirun (Open MPI)", (2, 1, 1, 2, 1)),
        (MPICH, "mpirun", (2, 0, 0, 1, 2)),
        (JSRUN, "jsrun", (4, 2, 0, 2, 2)),
        (SRUN | TORCHRUN, "torchrun", (4, 3, 1, 2, 2)),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}, "srun", (2, 1, 1, 2, 1)),
    ],
)
def test_a_launcher_is_recognised(variables, launcher, expected):
    found = find_launch(variables)
    assert found.launcher == launcher
    assert (found.world_size, found.rank, found.local_rank, found.local_size, found.nodes) == expected
    assert is_first(variables) == (expected[1] == 0)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train"},  # a shell of salloc
        SRUN | {"SLURM_JOB_NAME": "interactive"},
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_TASK_PID": "17"},  # the batch script itself
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
    ],
)
def test_single_process_has_no_launcher(variables):
    assert find_launch(variables) is None
    assert is_first(variables)


def test_a_process_that_lightning_started_is_not_the_first():
    assert not is_first({"LOCAL_RANK": "1", "WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE='many' is not a number"),
        ({"RANK": "4"}, "rank 4 of 4 processes"),
        ({"LOCAL_RANK": "2"}, "on this machine 2 of 2"),
    ],
)
def test_contradictory_variables_are_refused(change, says):
    with pytest.raises(ConfigError, match=says):
        find_launch(TORCHRUN | change)


@pytest.mark.parametrize(
    ("variables", "typed", "expected"),
    [
        ({}, ("auto", "auto"), (1, 1)),
        ({}, (2, "auto"), (2, 1)),
        (TORCHRUN, ("auto", "auto"), (2, 2)),
        (TORCHRUN, (2, 2), (2, 2)),
        (SRUN, ("auto", 2), (3, 2)),
    ],
)
def test_auto_is_what_the_launcher_started(launched, variables, typed, expected):
    launched(variables)
    assert count_processes(*typed) == expected


@pytest.mark.parametrize(
    ("variables", "typed", "says"),
    [
        (TORCHRUN, (4, "auto"), "train.devices=4, but torchrun started 4 processes: 2 processes on this machine"),
        (TORCHRUN, ("auto", 1), "train.nodes=1, but torchrun started 4 processes: 2 machines"),
        (TORCHRUN | {"WORLD_SIZE": "5"}, ("auto", "auto"), "start the same number on every machine"),
        (
            TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
            (2, 1),
            "set it to 1",
        ),
        ({}, ("auto", 2), "train.nodes=2: start the command on every machine by a launcher"),
        (
            {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_TASK_PID": "17"},
            ("auto", "auto"),
            "reserved 4 tasks, but the command was not started by srun",
        ),
    ],
)
def test_a_number_that_differs_from_the_launchers_is_refused(launched, variables, typed, says):
    launched(variables)
    with pytest.raises(ConfigError, match=says.replace("(", r"\(")):
        count_processes(*typed)
