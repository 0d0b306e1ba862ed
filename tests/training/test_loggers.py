"""The table of a run, and its bar."""

import io
import socket

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.tools.forks import die, forked

from cleft.training.callbacks import ProgressBar
from cleft.training.loggers import CsvLog, TensorBoardLog


def test_numbers_are_read_back_to_the_same_bits(tmp_path):
    table = CsvLog(tmp_path / "logs" / "log.csv", ["train/loss", "val/loss"])
    table.log_metrics({"train/loss": 0.1 + 0.2}, 1)
    table.log_metrics({"train/loss": 1e-300, "val/loss": 2.0}, 2)
    table.save()
    lines = (tmp_path / "logs" / "log.csv").read_text().splitlines()
    assert lines == ["step,train/loss,val/loss", "1,0.30000000000000004,", "2,1e-300,2.0"]


def test_a_resumed_run_cuts_off_what_it_will_do_again(tmp_path):
    path = tmp_path / "log.csv"
    table = CsvLog(path, ["loss"])
    for step in (1, 2, 3):
        table.log_metrics({"loss": step / 2}, step)
    with path.open("a") as file:
        file.write("4")  # a kill in the middle of a line
    again = CsvLog(path, ["loss"], first_step=2)
    again.log_metrics({"loss": 9.0}, 3)
    assert path.read_text() == "step,loss\n1,0.5\n2,1.0\n3,9.0\n"


def test_a_quantity_without_a_column_is_our_mistake(tmp_path):
    with pytest.raises(ValueError, match="los"):
        CsvLog(tmp_path / "log.csv", ["loss"]).log_metrics({"los": 1.0}, 1)


class Trainer:
    is_global_zero = True
    global_step = 3


def test_the_bar_shows_steps_and_loss_on_a_terminal_and_nothing_elsewhere():
    for terminal, shown in ((True, "3/10"), (False, "")):
        screen = io.StringIO()
        bar = ProgressBar("pretrain", 10, Console(file=screen, force_terminal=terminal, width=90))
        bar.on_train_start(Trainer(), None)
        bar.show_loss("loss 1.5")
        bar.on_train_end(Trainer(), None)
        assert shown in screen.getvalue()
        assert bool(screen.getvalue()) is terminal


def test_a_line_that_was_saved_survives_a_kill(tmp_path):
    from tests.tools.forks import die

    def work():
        table = CsvLog(tmp_path / "log.csv", ["loss"])
        table.log_metrics({"loss": 1.0}, 1)
        table.save()
        die()

    assert forked(work) == -9
    assert (tmp_path / "log.csv").read_text() == "step,loss\n1,1.0\n"


def read(folder):
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def log(folder, steps, first_step=0):
    board = TensorBoardLog(folder, first_step)
    for step in steps:
        board.log_metrics({"train/loss": step / 2, "lr": 0.5}, step)
    board.save()
    return board


def test_tensorboard_reads_every_quantity_of_every_step(tmp_path):
    log(tmp_path / "board", (10, 20)).finalize("success")
    assert read(tmp_path / "board") == {"train/loss": [(10, 5.0), (20, 10.0)], "lr": [(10, 0.5), (20, 0.5)]}


def test_the_bar_of_a_resumed_run_starts_at_its_step(tmp_path):
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


def test_o2_no_file_contains_the_name_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: pytest.fail("nobody needs the host's name"))
    log(tmp_path, (10,)).finalize("success")
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("events.out.tfevents.")


def test_nothing_is_written_before_something_is_logged(tmp_path):
    TensorBoardLog(tmp_path / "board").save()
    assert not (tmp_path / "board").exists()
