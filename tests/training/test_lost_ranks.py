"""Real faults on two and three ranks: killed, hung, signalled, and a first rank that cannot save."""

import os
import signal
import time

import pytest
import torch
from tests.tools.ranks import end_of, start_ranks
from tests.tools.tiny_learner import TinyLearner, run_tiny

from cleft.training.callbacks import StopFlag
from cleft.training.training_state import StateStore


class OnRank(TinyLearner):
    """Does `deed` on one rank in front of a step."""

    def __init__(self, rank, step, deed):
        super().__init__()
        self.at = rank, step
        self.deed = deed

    def loss(self, batch):
        if (self.trainer.global_rank, self.trainer.global_step) == self.at:
            self.deed()
        return super().loss(batch)


def train(folder, count, learner=None, **options):
    """Trains on several ranks; returns their exit codes, what they printed and the seconds it took."""
    output = folder.with_suffix(".txt")
    start = time.monotonic()

    def work():
        until = time.monotonic() + 60
        while os.environ["RANK"] != "0" and not (folder / "config.yaml").is_file() and time.monotonic() < until:
            time.sleep(0.02)  # as in `pretrain`, the first process prepares the run before the others open it
        with StopFlag() as stop:
            run_tiny(folder, learner=learner and learner(), stop=stop, devices=count, **options)

    codes = end_of(start_ranks(count, work, str(output)), 90)
    return codes, output.read_text(), time.monotonic() - start


def assert_resumes_as_if_nothing_had_been(folder, count, tmp_path):
    assert train(folder, count)[0] == [0] * count
    assert train(tmp_path / "whole", count)[0] == [0] * count
    resumed, whole = (
        StateStore(run / "states").load(StateStore(run / "states").latest().path)["state_dict"]
        for run in (folder, tmp_path / "whole")
    )
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


@pytest.mark.parametrize(("count", "lost"), [(2, 1), pytest.param(3, 0, marks=pytest.mark.slow)])
def test_m1_a_killed_rank_stops_all_and_is_named_with_its_signal(tmp_path, count, lost):
    folder = tmp_path / "run"
    codes, printed, seconds = train(
        folder, count, lambda: OnRank(lost, 7, lambda: os.kill(os.getpid(), signal.SIGKILL)), timeout=20
    )
    assert codes[lost] == -9
    assert [code for rank, code in enumerate(codes) if rank != lost] == [6] * (count - 1), printed
    assert f"rank {lost} (process " in printed
    assert ("was killed by SIGKILL" in printed) or ("its own message, or that of the launcher, says why" in printed)
    assert seconds < 30
    assert StateStore(folder / "states").latest().step == 6
    assert_resumes_as_if_nothing_had_been(folder, count, tmp_path)


@pytest.mark.slow
def test_m1_a_rank_that_hangs_stops_all_within_the_timeout(tmp_path):
    folder = tmp_path / "run"
    start = time.monotonic()
    codes, printed, _ = train(folder, 2, lambda: OnRank(1, 7, lambda: time.sleep(45)), timeout=10)
    assert codes[0] == 6, printed
    assert codes[1] != 0
    assert "lost contact" in printed
    assert time.monotonic() - start < 80
    assert StateStore(folder / "states").latest().step == 6


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_m4_a_stop_signal_to_one_rank_stops_all_at_the_same_step(tmp_path, number, code):
    folder = tmp_path / "run"
    codes, printed, _ = train(folder, 2, lambda: OnRank(1, 4, lambda: os.kill(os.getpid(), number)))
    assert codes == [code, code], printed
    assert printed.count("at step 5 of 12") == 2
    assert StateStore(folder / "states").latest().step == 5
    assert_resumes_as_if_nothing_had_been(folder, 2, tmp_path)


class Broken(StateStore):
    """A disk on which the first rank fails."""

    error = OSError(28, "No space left on device")

    def _write(self, checkpoint, stem):
        if int(stem[5:]) >= 6:
            raise self.error
        super()._write(checkpoint, stem)


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), pytest.param(RuntimeError("a tensor is gone"), marks=pytest.mark.slow)],
)
def test_m5_a_first_rank_that_cannot_save_stops_all(tmp_path, monkeypatch, error):
    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(Broken, "error", error)
        patched.setattr("cleft.training.trainer.StateStore", Broken)
        codes, printed, seconds = train(folder, 2)
    assert codes == [6, 6], printed
    assert seconds < 30
    assert StateStore(folder / "states").latest().step == 4
    assert_resumes_as_if_nothing_had_been(folder, 2, tmp_path)


def test_m6_ranks_with_other_settings_are_named(tmp_path):
    from dataclasses import replace

    from cleft.config import Settings
    from cleft.errors import ConfigError
    from cleft.training.distributed import first_rank_first
    from cleft.training.run_folder import open_run

    def work():
        settings = replace(Settings(), seed=int(os.environ["RANK"]))
        with first_rank_first(20) as ready:
            if os.environ["RANK"] == "0":
                with open_run(tmp_path / "run", settings, "pretrain"):
                    return ready()
            with (
                pytest.raises(ConfigError, match="other settings than the first rank: seed 0 → 1"),
                open_run(tmp_path / "run", settings, "pretrain"),
            ):
                pass

    assert end_of(start_ranks(2, work)) == [0, 0]


@pytest.mark.slow
def test_m7_a_run_of_two_ranks_resumes_on_one_and_on_two_again_with_a_note(tmp_path):
    folder = tmp_path / "run"
    die = lambda: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
    assert train(folder, 2, lambda: OnRank(1, 4, die))[0] != [0, 0]
    codes, printed, _ = train(folder, 1, lambda: OnRank(0, 8, die))
    assert codes == [-9]
    assert "no longer bitwise reproducible: processes 2 → 1" in printed
    codes, printed, _ = train(folder, 2)
    assert codes == [0, 0]
    assert "processes 1 → 2" in printed
    rows = [line.split(",")[0] for line in (folder / "logs" / "log.csv").read_text().splitlines()]
    assert rows == ["step", "2", "4", "6", "8", "10", "12"]
