"""Failures of the machine: memory, loader workers, disks and terminals. Named after rows of docs/reliability.md."""

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.tools.forks import die, forked
from tests.tools.tiny_learner import TinyLearner, run_tiny
from tests.tools.tiny_runs import CLASSES, tiny_settings, write_drawings
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from cleft.config import DataConfig, ImagesConfig, Settings
from cleft.data import batches as data_batches
from cleft.data.batches import eval_loader, train_loader
from cleft.data.images.cache import prepare_images
from cleft.errors import CheckpointError, DataError, ResourceError
from cleft.training import callbacks, training_state
from cleft.training.loggers import CsvLog
from cleft.training.pretrain import pretrain
from cleft.training.training_state import SCHEMA, StateStore
from cleft.types import Record
from cleft.version import __version__


class Greedy(TinyLearner):
    """Runs out of memory in the middle of a step."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def on_after_backward(self):
        if self.trainer.global_step == 7:
            raise self.error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    ],
)
def test_a6_running_out_of_memory_names_what_to_lower_and_saves_nothing_half(tmp_path, error):
    with pytest.raises(
        ResourceError, match=r"step 7: memory ran out with train\.batch_size=6, images\.size=4; last training state"
    ):
        run_tiny(tmp_path / "run", learner=Greedy(error))
    assert StateStore(tmp_path / "run" / "states").latest().step == 6
    resumed, _ = run_tiny(tmp_path / "run")
    whole, _ = run_tiny(tmp_path / "whole")
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())


def test_other_runtime_errors_are_not_reported_as_lack_of_memory(tmp_path):
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        run_tiny(tmp_path / "run", learner=Greedy(RuntimeError("mat1 and mat2 shapes cannot be multiplied")))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Twelve prepared images."""
    root = write_drawings(tmp_path_factory.mktemp("images") / "data", patients=12)
    records = [
        Record(id=f"{number}.png", image=root / f"{number}.png", labels={}, patient=f"p{number}", caption="a chest")
        for number in range(12)
    ]
    config = ImagesConfig(stored_size=64, size=56)
    return records, prepare_images(records, config, root.parent / "cache"), Settings(images=config)


def read_all(images, deed, **data):
    """Reads every image with two workers, one of which does `deed` at image 5."""
    records, prepared, settings = images
    settings = replace(settings, data=DataConfig(workers=2, **data))
    loader = eval_loader(records, prepared, (), settings, batch_size=2)
    view = loader.loader.dataset._view

    def misbehaving(epoch, row):
        if row == 5:
            deed()
        return view(epoch, row)

    loader.loader.dataset._view = misbehaving
    return [row for batch in loader for row in batch.rows.tolist()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a7_a_killed_loader_worker_ends_training_with_the_images_it_was_reading(images, number):
    def work():
        with pytest.raises(
            ResourceError, match=r"a loader worker (was killed by a signal|ended).*being read: .*5\.png"
        ) as e:
            read_all(images, lambda: os.kill(os.getpid(), number))
        assert "fewer data.workers" in str(e.value)

    assert forked(work) == 0


def test_a7_a_killed_worker_is_noticed_at_once_in_a_process_that_has_trained_before(images, tmp_path, monkeypatch):
    def work():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # as in a process that has not read with workers yet
        monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
        run_tiny(tmp_path, workers=1)  # Lightning resets all signal handlers at the end
        assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
        with pytest.raises(ResourceError, match="a loader worker"):  # `forked` ends it long before `timeout`
            read_all(images, lambda: os.kill(os.getpid(), signal.SIGKILL), timeout=3600)

    assert forked(work) == 0


@pytest.mark.parametrize("broken", [EOFError(), ConnectionResetError(), FileNotFoundError(2, "No such file")])
def test_a7_a_worker_killed_while_its_batch_is_received_is_named_too(images, broken, monkeypatch):
    def work():
        receive = _MultiProcessingDataLoaderIter._try_get_data

        def interrupted(self, timeout=5.0):
            if self._rcvd_idx < 1:
                return receive(self, timeout)
            os.kill(self._workers[0].pid, signal.SIGKILL)
            raise broken

        monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_try_get_data", interrupted)
        with pytest.raises(ResourceError, match=r"killed by a signal \((SIGKILL|Killed)\); being read: \d+\.png"):
            read_all(images, lambda: None)

    assert forked(work) == 0


def test_an_error_of_reading_with_living_workers_stays_what_it_is(images, monkeypatch):
    def work():
        def failing(self, timeout=5.0):
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_try_get_data", failing)
        with pytest.raises(OSError, match="Input/output error"):
            read_all(images, lambda: None)

    assert forked(work) == 0


def test_a8_a_hanging_loader_worker_ends_training_with_the_images_it_was_reading(images):
    def work():
        with pytest.raises(DataError, match=r"for 1 s \(data\.timeout\); being read: .*5\.png") as raised:
            read_all(images, lambda: time.sleep(60), timeout=1)
        assert raised.value.reason == "timeout"

    assert forked(work) == 0


def test_a7_without_a_fault_workers_read_every_image_once(images):
    assert read_all(images, lambda: None) == list(range(12))


def test_n6_too_little_shared_memory_is_refused_before_a_worker_starts(images, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(data_batches, "_SHARED_MEMORY", Path("/"))
    for free, refused in ((2 * 2 * 2 * 56**2 - 1, True), (2 * 2 * 2 * 56**2, False)):
        monkeypatch.setattr(data_batches.shutil, "disk_usage", lambda place, free=free: usage._replace(free=free))
        if refused:
            with pytest.raises(ResourceError, match=r"need 0\.0 MiB of shared memory.*set fewer data\.workers"):
                read_all(images, lambda: None)
        else:
            assert read_all(images, lambda: None) == list(range(12))
    monkeypatch.setattr(data_batches, "_SHARED_MEMORY", Path("/nowhere"))
    assert read_all(images, lambda: None) == list(range(12))


def test_a7_training_stops_and_resumes_after_a_killed_worker(tmp_path):
    root = write_drawings(tmp_path / "data")
    settings = tiny_settings(root, "--data.workers=1", "--optim.steps=6", "--optim.warmup_steps=1")

    def dying(*args, **options):
        loader = train_loader(*args, **options)
        views = loader.loader.dataset
        make, drawn = views.__getitems__, iter(range(100))

        def make_or_die(rows):
            return die() if next(drawn) == 4 else make(rows)

        views.__getitems__ = make_or_die
        return loader

    def work():
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("cleft.training.pretrain.train_loader", dying)
            with pytest.raises(ResourceError, match=r"a loader worker .* the same command resumes"):
                pretrain(settings, tmp_path / "run")

    assert forked(work) == 0
    assert not (tmp_path / "run" / "summary.json").exists()
    weights = [load_file(pretrain(settings, tmp_path / name) / "model.safetensors") for name in ("run", "complete")]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_a13_a_log_on_a_full_disk_costs_its_lines_and_not_the_training(tmp_path, monkeypatch, caplog):
    whole, _ = run_tiny(tmp_path / "whole")
    write = CsvLog.log_metrics

    def failing(self, metrics, step=None):
        if step in (4, 6):
            raise OSError(errno.ENOSPC, "No space left on device", "log.csv")
        write(self, metrics, step)

    monkeypatch.setattr(CsvLog, "log_metrics", failing)
    learner, _ = run_tiny(tmp_path / "run")
    assert caplog.text.count("the log cannot be written") == 1
    assert "2 lines of the log could not be written and are missing" in caplog.text
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in learner.state_dict().items())
    lines = (tmp_path / "run" / "logs" / "log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "2", "8", "10", "12"]


def test_a13_a_line_that_was_cut_by_a_full_disk_is_removed(tmp_path):
    log = CsvLog(tmp_path / "log.csv", ["loss"])
    log.log_metrics({"loss": 1.0}, 1)
    before = (tmp_path / "log.csv").read_bytes()

    def cut():
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 3, len(before) + 3))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with pytest.raises(OSError, match="File too large"):
            log.log_metrics({"loss": 1.23456789}, 2)

    assert forked(cut) == 0
    assert (tmp_path / "log.csv").read_bytes() == before


@pytest.mark.slow
def test_a13_a_closed_pipe_and_a_closed_terminal_do_not_end_training(tmp_path):
    root = write_drawings(tmp_path / "data")
    words = f"pretrain tiny --run={tmp_path / 'run'} --data.dataset=manifest --data.root={root}"
    more = f"--data.cache={tmp_path / 'cache'} --optim.steps=30 --optim.warmup_steps=3 --train.accelerator=cpu"
    process = subprocess.Popen(
        [sys.executable, "-m", "cleft", *words.split(), *more.split(), f"--classes=[{', '.join(CLASSES)}]"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stderr.readline()
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=300) == 0
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_a13_a_lost_terminal_saves_the_state_and_stops(tmp_path):
    class HungUp(TinyLearner):
        def on_after_backward(self):
            if self.trainer.global_step == 4:
                os.kill(os.getpid(), signal.SIGHUP)

    def work():
        from cleft.training.callbacks import StopFlag

        run_tiny(tmp_path / "run", learner=HungUp(), stop=StopFlag())

    assert forked(work, quiet=True) == 143
    assert StateStore(tmp_path / "run" / "states").latest().step == 5


def state(step):
    return {"global_step": step, "state_dict": {"weight": torch.full((50,), float(step))}}


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_b6_a_passing_error_of_the_disk_is_tried_again(tmp_path, monkeypatch, caplog, number):
    pauses, failures, fsync = [], iter([True, True]), os.fsync
    monkeypatch.setattr(training_state.time, "sleep", pauses.append)

    def failing(handle):
        if next(failures, False):
            raise OSError(number, "the server is gone")
        fsync(handle)

    monkeypatch.setattr(training_state.os, "fsync", failing)
    store = StateStore(tmp_path)
    store.save(state(3), 3)
    assert store.failure is None
    assert pauses == [0.5, 2.0]
    assert caplog.text.count("retrying in") == 2
    assert store.latest().step == 3
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("number", "tries"), [(errno.EIO, 3), (errno.ENOSPC, 1), (errno.EACCES, 1)])
def test_b6_an_error_that_stays_is_given_up_after_three_tries(tmp_path, monkeypatch, number, tries):
    calls = []
    monkeypatch.setattr(training_state.time, "sleep", lambda seconds: None)

    def failing(handle):
        calls.append(handle)
        raise OSError(number, "the server is gone")

    monkeypatch.setattr(training_state.os, "fsync", failing)
    store = StateStore(tmp_path)
    store.save(state(3), 3)
    assert len(calls) == tries
    assert store.failure
    assert not list(tmp_path.iterdir())


def rewrite(store, change):
    """Writes the newest state anew, as another version would have."""
    newest = store.latest()
    tree = torch.load(newest.path, weights_only=True)
    change(tree)
    newest.path.unlink()
    store._write(tree, f"step-{newest.step:08d}")


def test_b8_a_state_of_the_first_schema_resumes_to_the_same_bits(tmp_path):
    def first_schema(tree):
        del tree["cleft"], tree["callbacks"]["Keeper"]["since_best"]

    whole, _ = run_tiny(tmp_path / "whole")
    assert forked(lambda: run_tiny(tmp_path / "run", learner=TinyLearner(dies_at=("forward", 7)))) == -9
    rewrite(StateStore(tmp_path / "run" / "states"), first_schema)
    resumed, _ = run_tiny(tmp_path / "run")
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())


def test_b8_a_state_of_a_newer_version_is_refused_with_both_versions(tmp_path):
    def newer(tree):
        assert tree["cleft"] == {"schema": SCHEMA, "version": __version__}
        tree["cleft"] = {"schema": SCHEMA + 1, "version": "9.1"}

    assert forked(lambda: run_tiny(tmp_path / "run", learner=TinyLearner(dies_at=("forward", 7)))) == -9
    rewrite(StateStore(tmp_path / "run" / "states"), newer)
    with pytest.raises(CheckpointError, match=rf"by cleft 9\.1 \(schema {SCHEMA + 1}\), this is cleft {__version__}"):
        run_tiny(tmp_path / "run")


def test_b11_the_time_of_a_save_is_logged_and_slow_saves_are_hinted_at_once(tmp_path, monkeypatch, caplog):
    clock = iter(np.arange(0.0, 1e6, 1.5))
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: float(next(clock)))
    run_tiny(tmp_path / "run", save_every=1)
    assert caplog.text.count("raise train.save_every") == 1
    assert "saving a training state takes 1.5 s" in caplog.text
    lines = (tmp_path / "run" / "logs" / "log.csv").read_text().splitlines()
    place = lines[0].split(",").index("save_seconds")
    assert [line.split(",")[place] for line in lines[1:]] == ["1.5"] * 6


def test_b11_quick_saves_are_not_hinted_at(tmp_path, caplog):
    run_tiny(tmp_path / "run", save_every=1)
    assert "save_every" not in caplog.text


def test_patience_without_a_validation_split_is_refused_before_training(tmp_path):
    root = write_drawings(tmp_path / "data")
    settings = tiny_settings(root, "--data.val_fraction=0", "--train.patience=2")
    with pytest.raises(Exception, match=r"train\.patience=2 needs a validation split"):
        pretrain(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_log_names_the_step_of_the_best_weights(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run_tiny(tmp_path / "run")
    assert "kept the weights of step" in caplog.text
