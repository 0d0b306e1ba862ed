"""TensorBoard reads what we write, and nothing in it tells on which machine."""

import socket

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.tools.forks import die, forked

from cleft.training.board import BoardLog


def read(folder):
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def log(folder, steps, first_step=0):
    board = BoardLog(folder, first_step)
    for step in steps:
        board.log_metrics({"train/loss": step / 2, "lr": 0.5}, step)
    board.save()
    return board


def test_tensorboard_reads_every_quantity_of_every_step(tmp_path):
    log(tmp_path / "board", (10, 20)).finalize("success")
    assert read(tmp_path / "board") == {"train/loss": [(10, 5.0), (20, 10.0)], "lr": [(10, 0.5), (20, 0.5)]}


def test_a_resumed_run_goes_on_where_its_state_was(tmp_path):
    log(tmp_path, (10, 20, 30)).finalize("failed")
    board = log(tmp_path, (30, 40), first_step=20)
    assert len(list(tmp_path.iterdir())) == 2
    assert read(tmp_path)["train/loss"] == [(10, 5.0), (20, 10.0), (30, 15.0), (40, 20.0)]
    board.finalize("success")


def test_what_was_saved_survives_a_kill(tmp_path):
    def work():
        log(tmp_path, (10,))
        die()

    assert forked(work) == -9
    assert read(tmp_path)["train/loss"] == [(10, 5.0)]


def test_o2_no_file_tells_the_name_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: pytest.fail("nobody needs the host's name"))
    log(tmp_path, (10,)).finalize("success")
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("events.out.tfevents.")


def test_nothing_is_written_before_something_is_logged(tmp_path):
    BoardLog(tmp_path / "board").save()
    assert not (tmp_path / "board").exists()
