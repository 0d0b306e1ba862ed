"""The table of a run, and its bar."""

import io

import pytest
from rich.console import Console
from tests.tools.forks import forked

from cleft.training.logs import CsvLog, ProgressBar


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
