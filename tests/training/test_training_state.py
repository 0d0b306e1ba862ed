"""Training states survive kills, full disks and damaged bytes."""

import os
import resource
import shutil

import pytest
import torch
from tests.tools.forks import dies_at_call, forked

from cleft.errors import CheckpointError, ResourceError
from cleft.files import write_whole
from cleft.training import training_state
from cleft.training.training_state import StateStore, tensor_bytes


def state(step):
    return {"global_step": step, "state_dict": {"weight": torch.full((50,), float(step))}, "loops": {"seen": [step]}}


def save(store, step, best=None):
    store.best_step = best
    store.save(state(step), step)


def steps(store):
    return sorted(int(path.name[5:13]) for path in store.folder.glob("step-*.ckpt"))


def test_a_state_comes_back_as_it_was_saved(tmp_path):
    store = StateStore(tmp_path / "states")
    assert store.latest() is None
    save(store, 7)
    found = store.latest()
    loaded = store.load(found.path)
    assert found.step == loaded["global_step"] == 7
    assert torch.equal(loaded["state_dict"]["weight"], torch.full((50,), 7.0))


def test_the_last_two_and_the_best_each_of_them_knows_stay(tmp_path):
    store = StateStore(tmp_path)
    save(store, 1, best=1)
    save(store, 2, best=1)
    save(store, 3, best=1)
    assert steps(store) == [1, 2, 3]
    save(store, 4, best=4)
    assert steps(store) == [1, 3, 4]
    save(store, 5, best=4)
    assert steps(store) == [4, 5]


def test_b7_the_newest_is_chosen_by_number_and_strangers_are_left_alone(tmp_path):
    store = StateStore(tmp_path)
    save(store, 10)
    save(store, 9)
    os.utime(next(tmp_path.glob("step-00000009*")))
    (tmp_path / "step-x.ckpt").write_text("mine")
    assert store.latest().step == 10
    assert (tmp_path / "step-x.ckpt").is_file()


@pytest.mark.parametrize("where", [0.0, 0.3, 0.7, 0.999])
@pytest.mark.parametrize("kind", ["cut", "flip"])
def test_b4_a_damaged_newest_state_is_set_aside_for_the_one_before(tmp_path, caplog, kind, where):
    store = StateStore(tmp_path)
    save(store, 1)
    save(store, 2)
    newest = next(tmp_path.glob("step-00000002*"))
    data = bytearray(newest.read_bytes())
    at = int(where * len(data))
    newest.write_bytes(data[:at] if kind == "cut" else data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    assert store.latest().step == 1
    assert "step-00000002" in caplog.text
    assert list(tmp_path.glob("*.bad"))


def test_b4_training_never_starts_over_when_all_states_are_damaged(tmp_path):
    store = StateStore(tmp_path)
    save(store, 1)
    next(tmp_path.glob("step-*")).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"step-00000001\S* is damaged \(empty\)"):
        store.latest()


def test_a2_an_intact_state_remains_when_a_save_is_killed_at_any_call(tmp_path):
    outcomes = set()
    for call in range(12):
        folder = tmp_path / str(call)
        store = StateStore(folder)
        save(store, 1)
        save(store, 2)

        def one_more(store=store, call=call):
            with dies_at_call(call):
                save(store, 3)

        status = forked(one_more)
        found = StateStore(folder).latest()
        assert found.step in (2, 3)
        assert store.load(found.path)["global_step"] == found.step
        assert not list(folder.glob(".*.tmp"))
        outcomes.add((status, found.step))
    assert outcomes == {(-9, 2), (-9, 3), (0, 3)}


def test_b1_a_full_disk_leaves_the_old_state_and_says_what_is_missing(tmp_path):
    store = StateStore(tmp_path)
    save(store, 1)

    def too_big():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
        store.save({"state_dict": {"w": torch.zeros(2**18)}}, 2)
        assert "disk is full" in store.failure
        assert "needs 1.0 MiB" in store.failure
        assert str(tmp_path) in store.failure

    assert forked(too_big) == 0
    assert steps(store) == [1]
    assert store.latest().step == 1
    assert not list(tmp_path.glob(".*.tmp"))


def test_b2_too_little_disk_space_is_refused_before_the_first_step(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(training_state.shutil, "disk_usage", lambda folder: usage._replace(free=3 * 2**20))
    StateStore(tmp_path).check_space(2**19)
    with pytest.raises(ResourceError, match=r"need 3\.2 MiB, 3\.0 MiB are free"):
        StateStore(tmp_path).check_space(2**20)


def test_a_state_that_holds_more_than_data_is_refused(tmp_path):
    store = StateStore(tmp_path)
    store.save({"state_dict": {}, "callable": os.system}, 1)
    with pytest.raises(Exception, match="Weights only load failed"):
        store.load(store.latest().path)


def test_bytes_are_counted_through_nesting():
    assert tensor_bytes({"a": [torch.zeros(3), {"b": torch.zeros(2, dtype=torch.float64)}], "c": 1}) == 28


def test_a_small_file_is_replaced_as_a_whole(tmp_path):
    write_whole(tmp_path / "a.json", "old")
    assert forked(lambda: _killed_while_writing(tmp_path / "a.json")) == -9
    assert (tmp_path / "a.json").read_text() == "old"


def _killed_while_writing(path):
    with dies_at_call(1):
        write_whole(path, "new")


def test_a9_a_state_is_on_disk_before_it_gets_its_name_and_the_name_before_older_states_go(tmp_path, monkeypatch):
    calls = []

    def recorded(name):
        original = getattr(os, name)

        def call(first, *rest, **more):
            is_folder = name == "fsync" and os.path.isdir(f"/proc/self/fd/{first}")
            calls.append(f"{name} folder" if is_folder else name)
            return original(first, *rest, **more)

        return call

    store = StateStore(tmp_path)
    for step in (1, 2):
        save(store, step)
    for name in ("fsync", "replace", "unlink"):
        monkeypatch.setattr(training_state.os, name, recorded(name))
    save(store, 3)
    assert calls == ["fsync", "replace", "fsync folder", "unlink"]
    assert steps(store) == [2, 3]
