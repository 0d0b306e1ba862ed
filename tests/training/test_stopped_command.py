"""The command itself, stopped and killed as a scheduler or a person would."""

import signal
import subprocess
import sys
import time

import pytest
from tests.tools.tiny_runs import CLASSES, log_of, write_drawings

pytestmark = pytest.mark.slow


def command(root, run):
    words = f"pretrain tiny --run={run} --data.dataset=manifest --data.root={root} --data.cache={run.parent / 'cache'}"
    more = "--optim.steps=80 --optim.warmup_steps=10 --train.save_every=15 --train.val_every=20 --train.accelerator=cpu"
    return [sys.executable, "-m", "cleft", *words.split(), *more.split(), f"--classes=[{', '.join(CLASSES)}]"]


def start_and_wait_for_line(words, run, count):
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    table = run / "logs" / "log.csv"
    while process.poll() is None and not (table.exists() and table.read_text().count("\n") > count):
        time.sleep(0.02)
    return process


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_drawings(tmp_path_factory.mktemp("drawings") / "data")


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """A run that nobody stopped."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    subprocess.run(command(root, run), check=True, capture_output=True)
    return run


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a3_a4_the_command_stops_with_its_code_and_resumes_exactly(tmp_path, root, whole, number, code):
    words = command(root, tmp_path / "run")
    process = start_and_wait_for_line(words, tmp_path / "run", 20)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in said
    if code > 0:
        assert "the same command resumes from there" in said
    subprocess.run(words, check=True, capture_output=True)
    assert log_of(tmp_path / "run") == log_of(whole)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
