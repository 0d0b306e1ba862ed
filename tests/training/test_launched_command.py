"""The command as launchers start it: one training over all processes, every other verb once."""

import csv
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.tools.ranks import free_port
from tests.tools.tiny_runs import CLASSES, write_drawings

from cleft.cli import build_parser, main
from cleft.cli.options import split_settings
from cleft.config import load_settings

RANK_1 = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


def pretrain_words(root, run, *more):
    words = f"pretrain tiny --run {run} --data.dataset manifest --data.root {root} --data.cache {root.parent / 'cache'}"
    steps = "--optim.steps=6 --optim.warmup_steps=1 --train.val_every=3 --train.accelerator=cpu"
    return [*words.split(), *steps.split(), f"--classes=[{', '.join(CLASSES)}]", *more]


def test_other_verbs_work_in_the_first_process_alone(monkeypatch, capsys):
    for name, value in RANK_1.items():
        monkeypatch.setenv(name, value)
    assert main(["presets"]) == 0
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert main(["presets"]) == 0
    shown = capsys.readouterr()
    assert "demo" in shown.out
    assert shown.err == "cleft presets uses one process; the other 1 that the launcher started does nothing\n"
    assert "RANK" not in os.environ


def test_a_wrong_setting_is_reported_by_one_process_of_a_machine(monkeypatch, capsys):
    for name, value in RANK_1.items():
        monkeypatch.setenv(name, value)
    assert main(["pretrain", "demo", "--train.devices=3"]) == 2
    assert capsys.readouterr() == ("", "")


PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "train-on-several-gpus.md"


def launched_commands():
    """Lines of the page that begin with a launcher."""
    return re.findall(r"^ *((?:torchrun|srun) .*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("line", launched_commands(), ids=lambda line: " ".join(line.split()[:4]))
def test_every_launched_command_of_the_page_can_be_typed(line):
    launcher, *words = shlex.split(line)
    if launcher == "torchrun":
        from torch.distributed.run import get_args_parser

        options = get_args_parser().parse_args(words)  # as torchrun reads its own command line
        assert options.module
        words = [options.training_script, *options.training_script_args]
    else:
        words = [word for word in words if not word.startswith("--kill")]
    assert words[0] == "cleft"
    own, settings = split_settings(words[1:])
    options, rest = build_parser().parse_known_args(own)
    assert options.run
    load_settings(options.preset, [*rest, *settings])


def test_the_page_has_commands_of_torchrun_and_of_slurm():
    assert [line.split()[0] for line in launched_commands()] == ["torchrun", "torchrun", "srun"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_drawings(tmp_path_factory.mktemp("drawings") / "data")


def run(words, **variables):
    return subprocess.run(
        words, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, **variables}
    )


def assert_one_training(folder, result):
    assert result.stderr.count("step 6 of 6: validation loss") == 1, result.stderr
    assert result.stdout.count("stage one is complete") == 1
    with (folder / "logs" / "log.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == [str(step) for step in range(1, 7)]
    assert '"processes": 2' in (folder / "environment.json").read_text()


@pytest.mark.slow
def test_torchrun_without_train_devices_trains_one_model(root, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    words = [*torchrun, str(free_port()), "-m", "--", "cleft", *pretrain_words(root, tmp_path / "run")]
    result = run(words)
    assert result.returncode == 0, result.stderr
    assert_one_training(tmp_path / "run", result)
    again = run(words)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("is finished") == 1


@pytest.mark.slow
def test_torchrun_with_another_number_of_devices_is_refused_once(root, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    words = pretrain_words(root, tmp_path / "run", "--train.devices", "3")
    result = run([*torchrun, str(free_port()), "-m", "--", "cleft", *words])
    assert result.returncode != 0
    assert result.stderr.count("error: train.devices=3, but torchrun started 2 processes") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_tasks_of_slurm_train_one_model(root, tmp_path):
    variables = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": str(free_port()), "SLURM_NNODES": "1", "SLURM_NODEID": "0"}
    words = [sys.executable, "-m", "cleft", *pretrain_words(root, tmp_path / "run")]
    tasks = [
        subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in (0, 1)
    ]
    outputs = [task.communicate(timeout=300) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outputs
    assert outputs[1] == ("", "")
    assert_one_training(tmp_path / "run", subprocess.CompletedProcess(words, 0, *outputs[0]))


@pytest.mark.slow
def test_two_devices_without_a_launcher_train_one_model(root, tmp_path):
    result = run([sys.executable, "-m", "cleft", *pretrain_words(root, tmp_path / "run", "--train.devices", "2")])
    assert result.returncode == 0, result.stderr
    assert_one_training(tmp_path / "run", result)


@pytest.mark.slow
def test_m1_a_killed_process_that_the_command_started_itself_is_named(root, tmp_path):
    words = pretrain_words(root, tmp_path / "run", "--train.devices", "2", "--optim.steps", "4000")
    process = subprocess.Popen([sys.executable, "-m", "cleft", *words], stderr=subprocess.PIPE, text=True)
    table = tmp_path / "run" / "logs" / "log.csv"
    while process.poll() is None and not (table.exists() and table.read_text().count("\n") > 5):
        time.sleep(0.05)
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True)
    child = next(
        int(word) for word in found.stdout.split() if b"LOCAL_RANK=1" in Path(f"/proc/{word}/environ").read_bytes()
    )
    os.kill(child, 9)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 6, errors
    assert f"rank 1 (process {child}) was killed by SIGKILL" in errors
