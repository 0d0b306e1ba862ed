"""A run that was killed, stopped or refused goes on as if nothing had been."""

import csv
import os
import random
import shutil
import signal
from types import MappingProxyType

import pytest
import torch
from tests.tools.forks import forked
from tests.tools.tiny_learner import STEPS, TinyLearner, run_tiny

from cleft.errors import CheckpointError, ConfigError, Interrupted, NumericsError, ResourceError, Terminated
from cleft.training.callbacks import StopFlag
from cleft.training.training_state import StateStore

PLACES = ("forward", "backward", "update", "validation")


def remains(folder):
    """Everything a run leaves that must not depend on how often it was interrupted."""
    store = StateStore(folder / "states")
    state = store.load(store.latest().path)
    with (folder / "logs" / "log.csv").open() as file:
        lines = [
            {k: v for k, v in row.items() if k not in ("seconds_per_step", "save_seconds")}
            for row in csv.DictReader(file)
        ]
    tensors = {name: tensor.numpy().tobytes() for name, tensor in state["state_dict"].items()}
    moments = [
        (key, torch.as_tensor(value).numpy().tobytes())
        for slot in state["optimizer_states"][0]["state"].values()
        for key, value in slot.items()
    ]
    steps = sorted(path.name[:13] for path in store.folder.iterdir())
    return tensors, moments, state["lr_schedulers"], state["callbacks"], lines, steps


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    learner, outcome = run_tiny(folder)
    return remains(folder), learner.state_dict(), outcome


def goes_on_exactly(folder, kills, uninterrupted, workers=0):
    for place in kills:
        assert forked(lambda place=place: run_tiny(folder, workers=workers, learner=TinyLearner(dies_at=place))) == -9
    learner, outcome = run_tiny(folder, workers=workers)
    left, weights, expected = uninterrupted
    assert remains(folder) == left
    assert outcome == expected
    assert all(torch.equal(value, weights[name]) for name, value in learner.state_dict().items())


@pytest.mark.parametrize(
    "kills",
    [
        [("forward", 0)],
        [("update", 3)],
        [("forward", 3), ("backward", 5)],
        [("validation", 4)],
        [("validation", 8), ("forward", 8)],
        [("backward", 11), ("validation", 12)],
    ],
    ids=str,
)
def test_a1_killed_anywhere_it_ends_in_the_same_bits(tmp_path, uninterrupted, kills):
    goes_on_exactly(tmp_path / "run", kills, uninterrupted)


def test_a1_killed_with_two_loader_workers_it_ends_in_the_bits_of_none(tmp_path, uninterrupted):
    goes_on_exactly(tmp_path / "run", [("backward", 7)], uninterrupted, workers=2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25))
def test_a1_killed_at_random_moments_it_ends_in_the_same_bits(tmp_path, uninterrupted, seed):
    draw = random.Random(seed)
    steps = sorted(draw.sample(range(STEPS), draw.randint(1, 3)))
    kills = [(draw.choice(PLACES[:2]), step) for step in steps]
    goes_on_exactly(tmp_path / "run", kills, uninterrupted, workers=draw.choice([0, 0, 2]))


class Signalled(TinyLearner):
    """Sends a signal to itself."""

    def __init__(self, place, step, number):
        super().__init__()
        self.at = place, step
        self.number = number

    def _maybe_die(self, where):
        if (where, self.trainer.global_step) == self.at:
            os.kill(os.getpid(), self.number)

    def validation_loss(self, poll):
        self._maybe_die("validation")
        poll()
        return super().validation_loss(poll)


@pytest.mark.parametrize(
    ("place", "step", "number", "error"),
    [
        ("forward", 5, signal.SIGTERM, Terminated),
        ("backward", 2, signal.SIGINT, Interrupted),
        ("validation", 8, signal.SIGTERM, Terminated),
    ],
)
def test_a3_a4_a_stop_signal_saves_the_step_and_is_reported(tmp_path, uninterrupted, place, step, number, error):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(error, match=r"at step \d+ of 12") as raised:
        run_tiny(tmp_path / "run", learner=Signalled(place, step, number), stop=StopFlag())
    assert raised.value.exit_code == 128 + number
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert StateStore(tmp_path / "run" / "states").latest().step == (step if place == "validation" else step + 1)
    run_tiny(tmp_path / "run")
    tensors, moments, schedule, callbacks, lines, _ = remains(tmp_path / "run")
    assert (tensors, moments, schedule, callbacks, lines) == uninterrupted[0][:5]


def test_a3_a_signal_after_the_last_check_is_handed_on_at_the_end_and_only_then():
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with StopFlag():
            os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM]
        with pytest.raises(Terminated, match="at step 3"), StopFlag() as stop:  # noqa: PT012
            os.kill(os.getpid(), signal.SIGTERM)
            stop.check("at step 3 of 10")
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a3_a_second_signal_ends_the_process_at_once():
    def twice():
        with StopFlag() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.number == signal.SIGTERM
            os.kill(os.getpid(), signal.SIGTERM)

    assert forked(twice) == 143


def test_a5_a_finished_training_trains_no_further(tmp_path, uninterrupted):
    run_tiny(tmp_path / "run")
    learner, outcome = run_tiny(tmp_path / "run", learner=TinyLearner(dies_at=("forward", 0)))
    assert outcome == uninterrupted[2]
    assert learner.validations == 0
    assert all(torch.equal(value, uninterrupted[1][name]) for name, value in learner.state_dict().items())


def test_b4_a_damaged_newest_state_costs_steps_but_no_bits(tmp_path, uninterrupted, caplog):
    forked(lambda: run_tiny(tmp_path / "run", learner=TinyLearner(dies_at=("forward", 7))))
    newest = StateStore(tmp_path / "run" / "states").latest()
    newest.path.write_bytes(newest.path.read_bytes()[:-100])
    run_tiny(tmp_path / "run")
    assert f"step-{newest.step:08d}" in caplog.text
    newest.path.with_suffix(".bad").unlink()
    assert remains(tmp_path / "run") == uninterrupted[0]


def test_g1_a_loss_that_is_not_finite_stops_in_front_of_the_update(tmp_path):
    learner = TinyLearner(nan_at=7)
    with pytest.raises(NumericsError, match=r"step 7: the loss is nan.*Learning rate 0\.0.*training state: step 6"):
        run_tiny(tmp_path / "run", learner=learner)
    assert all(torch.isfinite(weight).all() for weight in learner.parameters())


def test_g10_a_part_without_gradient_is_named(tmp_path):
    class Torn(TinyLearner):
        def __init__(self):
            super().__init__()
            self.text_tower = torch.nn.Linear(2, 2)

    with pytest.raises(ConfigError, match="no gradient reaches text_tower"):
        run_tiny(tmp_path / "run", learner=Torn())


def test_states_hold_trainable_parameters_only(tmp_path):
    run_tiny(tmp_path / "run")
    store = StateStore(tmp_path / "run" / "states")
    names = store.load(store.latest().path)["state_dict"].keys()
    assert "model.1.running_mean" in names
    assert "frozen.weight" not in names


def test_j4_a_state_of_another_model_is_refused_with_names(tmp_path):
    class Wider(TinyLearner):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.Sequential(torch.nn.Linear(4, 9), *list(self.model)[1:], torch.nn.Linear(1, 1))

    forked(lambda: run_tiny(tmp_path / "run", learner=TinyLearner(dies_at=("forward", 7))))
    with pytest.raises(CheckpointError, match=r"2 missing \(model\.4\.bias.*of another shape \(model\.0\.bias"):
        run_tiny(tmp_path / "run", learner=Wider())


class FullDisk(StateStore):
    """A disk that is full for some saves."""

    full: tuple[int, ...] = ()

    def _write(self, checkpoint, stem):
        if int(stem[5:]) in self.full:
            raise OSError(28, "No space left on device")
        super()._write(checkpoint, stem)


@pytest.mark.parametrize("full", [(3,), (4,), (3, 9)])
def test_b1_a_disk_that_is_full_once_is_survived(tmp_path, uninterrupted, monkeypatch, caplog, full):
    monkeypatch.setattr(FullDisk, "full", full)
    monkeypatch.setattr("cleft.training.trainer.StateStore", FullDisk)
    run_tiny(tmp_path / "run")
    assert caplog.text.count("trying again at the next save") == len(full)
    assert remains(tmp_path / "run")[0] == uninterrupted[0][0]


def test_b1_a_disk_that_stays_full_ends_the_run_with_the_old_state(tmp_path, monkeypatch):
    monkeypatch.setattr(FullDisk, "full", (4, 6))
    monkeypatch.setattr("cleft.training.trainer.StateStore", FullDisk)
    with pytest.raises(ResourceError, match="the disk is full: a training state needs"):
        run_tiny(tmp_path / "run")
    assert StateStore(tmp_path / "run" / "states").latest().step == 3


def test_the_callers_generator_and_kernels_are_left_as_they_were(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    learner = TinyLearner()
    torch.manual_seed(5)
    run_tiny(tmp_path / "run", learner=learner)
    assert torch.equal(torch.rand(1), expected)
    assert not torch.are_deterministic_algorithms_enabled()


class Worsening(TinyLearner):
    """Its validation losses are given."""

    losses = MappingProxyType({2: 3.0, 4: 2.0, 6: 2.5, 8: 2.25, 10: 1.0, 12: 1.5})

    def validation_loss(self, poll):
        poll()
        self._maybe_die("validation")
        return self.losses[self.trainer.global_step]


def test_training_stops_early_where_the_validation_loss_no_longer_falls(tmp_path, caplog):
    caplog.set_level("INFO")
    _, outcome = run_tiny(tmp_path / "run", learner=Worsening(), val_every=2, patience=2)
    assert (outcome.best_step, outcome.best_loss, outcome.last_step) == (4, 2.0, 8)
    assert "step 8 of 12: training stops early; the validation loss was lowest at step 4" in caplog.text
    assert (
        "kept the weights of step 4 of 12 (stopped early at step 8), which have the lowest validation loss (2.0000)"
        in (caplog.text)
    )
    assert StateStore(tmp_path / "run" / "states").latest().step == 8


@pytest.mark.parametrize("patience", [None, 0, 3])
def test_with_enough_patience_or_none_training_goes_to_its_end(tmp_path, patience):
    _, outcome = run_tiny(tmp_path / "run", learner=Worsening(), val_every=2, patience=patience)
    assert (outcome.best_step, outcome.last_step) == (10, 12)


@pytest.mark.parametrize("place", [("forward", 4), ("forward", 7), ("validation", 8)])
def test_early_stopping_counts_on_where_a_run_was_killed(tmp_path, place):
    options = {"val_every": 2, "save_every": 1, "patience": 2}
    whole, expected = run_tiny(tmp_path / "whole", learner=Worsening(), **options)
    assert forked(lambda: run_tiny(tmp_path / "run", learner=Worsening(dies_at=place), **options)) == -9
    resumed, outcome = run_tiny(tmp_path / "run", learner=Worsening(), **options)
    assert outcome == expected
    assert remains(tmp_path / "run") == remains(tmp_path / "whole")
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())


def test_a_run_that_stopped_early_and_was_killed_before_its_end_makes_no_further_step(tmp_path):
    options = {"val_every": 2, "patience": 2}
    _, expected = run_tiny(tmp_path / "run", learner=Worsening(), **options)
    _, outcome = run_tiny(tmp_path / "run", learner=Worsening(dies_at=("forward", 8)), **options)
    assert outcome == expected


def test_a11_a_copied_run_resumes_from_its_newest_step_whatever_the_clock(tmp_path, uninterrupted):
    assert forked(lambda: run_tiny(tmp_path / "run", learner=TinyLearner(dies_at=("forward", 7)))) == -9
    shutil.copytree(tmp_path / "run", tmp_path / "elsewhere" / "copy")
    for place, state in enumerate(sorted((tmp_path / "elsewhere" / "copy" / "states").glob("*.ckpt"), reverse=True)):
        os.utime(state, (10**9 + place, 10**9 + place))  # the oldest state seems to be the newest
    run_tiny(tmp_path / "elsewhere" / "copy")
    assert remains(tmp_path / "elsewhere" / "copy") == uninterrupted[0]
