"""What dies takes its own item with it, and nothing else."""

import ast
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import RLELossless
from tests.fakes.dicom import dicom_bytes
from tests.tools.forks import forked
from tests.tools.lethal import array_of, do

import cleft
from cleft.config import ImagesConfig
from cleft.data.batches import load_image
from cleft.data.images.cache import PrepareOptions, prepare_images
from cleft.data.images.decode_pool import ChildPool, Failure, Limits, prepare_file, prepare_pool
from cleft.errors import DataError, ResourceError
from cleft.files import file_key, lock_file
from cleft.types import Record

CONFIG = ImagesConfig(stored_size=32, size=32)


class Lethal:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (3,)


@pytest.fixture
def paths(tmp_path):
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"not an image")
    return [tmp_path / f"{number}.png" for number in range(3)]


def test_a_bad_file_gives_a_result_with_a_reason(paths, tmp_path):
    outcome = prepare_file(paths[1], CONFIG, frozenset())
    assert (outcome.reason, outcome.pixels) == ("format", None)
    assert outcome.source.key == file_key(paths[1])
    assert prepare_file(tmp_path / "absent", CONFIG, frozenset()).source is None


def test_content_to_be_skipped_is_not_decoded(paths):
    content = prepare_file(paths[1], CONFIG, frozenset()).source.sha256
    outcome = prepare_file(paths[1], CONFIG, frozenset({content}))
    assert (outcome.reason, outcome.pixels) == ("", None)


def test_a_process_that_cannot_start_is_an_error(paths):
    with pytest.raises(ResourceError, match=r"could not start \(exit code 3\)"):
        with prepare_pool(Lethal(), frozenset(), 2) as prepare:
            list(prepare(paths))


def write_radiograph(path, syntax, damage=lambda data: data):
    pixels = np.random.default_rng(0).integers(1000, 1100, (64, 64)).astype(np.uint16)
    path.write_bytes(damage(dicom_bytes(pixels, bits=12, syntax=syntax)))
    return path


def without_the_middle(data):
    return data[: len(data) // 2] + data[len(data) // 2 + 64 :]


@pytest.mark.parametrize("jobs", [0, 2])
def test_a_file_that_makes_a_decoder_panic_costs_only_itself(paths, tmp_path, jobs):
    """The decoder of RLE raises what is no `Exception`."""
    broken = write_radiograph(tmp_path / "broken", RLELossless, without_the_middle)
    whole = write_radiograph(tmp_path / "whole", RLELossless)
    with prepare_pool(CONFIG, frozenset(), jobs) as prepare:
        outcomes = list(prepare([whole, broken, paths[0], whole]))
    assert [outcome.reason for outcome in outcomes] == ["", "malformed", "", ""]
    assert np.array_equal(outcomes[0].pixels, outcomes[3].pixels)
    assert all(outcome.pixels is not None for outcome in outcomes if not outcome.reason)


def test_the_calling_process_decodes_nothing(paths, monkeypatch):
    monkeypatch.setattr("cleft.data.images.decode_pool.decode_gray", None)
    with prepare_pool(CONFIG, frozenset(), 0) as prepare:
        assert [outcome.reason for outcome in prepare(paths)] == ["", "format", ""]


@pytest.mark.parametrize("name", ["abrt.dcm", "panic.dcm"])
def test_cases_that_ended_the_process_have_a_reason(shared, tmp_path, paths, name):
    case = shared / "cases/files" / name
    records = [Record(id=path.name, image=path, labels={}, patient="p") for path in (paths[0], case, paths[2])]
    images = prepare_images(records, CONFIG, tmp_path / "cache", PrepareOptions(max_invalid=0.5, progress=False))
    assert images.rejected == {name: "malformed"}
    with pytest.raises(DataError, match=name) as caught:
        load_image(case, CONFIG)
    assert caught.value.reason == "malformed"
    assert load_image(str(paths[0]), CONFIG).shape == (1, 1, 32, 32)


def run(items, jobs=1, limits=None):
    with ChildPool(do, jobs, limits) as children:
        return list(children.map(items))


def test_results_are_in_order_even_if_one_is_slow():
    items = [f"item {number}" for number in range(60)]
    items[0] = "sleep"
    assert run(items, jobs=2) == items


def test_no_items_give_no_results():
    assert run([]) == []


def test_c11_an_item_that_crashes_twice_fails_and_the_rest_continues():
    one, segfault, left, two = run(["one", "segfault", "exit", "two"], jobs=2)
    assert (one, two) == ("one", "two")
    assert segfault == Failure("crashed", "it crashes the decoder (SIGSEGV); tried twice")
    assert left == Failure("crashed", "it crashes the decoder (exit code 7); tried twice")


def test_c11_an_endless_loop_times_out_and_sleep_does_not():
    results = run(["loop", "sleep", "one"], limits=Limits(seconds=0.2))
    assert results == [Failure("timeout", "not decoded after 0.2 s of processor time; tried twice"), "sleep", "one"]


def test_c11_memory_has_a_limit(capfd):
    refused, one = run(["allocate", "one"], limits=Limits(memory=2**27))
    assert (refused, one) == (Failure("memory", "memory ran out while decoding it"), "one")
    assert capfd.readouterr().err == ""


def test_c11_an_item_that_uses_no_processor_time_times_out_too():
    results = run(["sleep", "one"], limits=Limits(elapsed=0.1))
    assert results == [Failure("timeout", "not decoded in time, without using the processor; tried twice"), "one"]


def test_an_exception_costs_only_its_item(capfd):
    """A decoder written in Rust raises what is no `Exception`."""
    panic, error, said, one = run(["panic", "raise", "print", "one"])
    assert panic == Failure("crashed", "the decoder raised Panic")
    assert error == Failure("crashed", "the decoder raised TypeError")
    assert (said, one) == ("print", "one")
    assert capfd.readouterr() == ("", "")


def test_work_that_cannot_be_unpickled_is_an_error(capfd):
    with pytest.raises(ResourceError, match=r"could not start \(exit code 1\)"):
        with ChildPool(Unreadable(), 1) as children:
            list(children.map(["one"]))
    assert "this cannot be read" in capfd.readouterr().err


def test_a_system_that_cannot_start_a_process_is_an_error(monkeypatch):
    def refuse(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr("cleft.data.images.decode_pool._idle", [])
    with pytest.raises(ResourceError, match=r"cannot be started \(Resource temporarily unavailable\)"):
        run(["one"])


class Unreadable:
    def __reduce__(self):
        return _fail, ()


def _fail():
    raise ValueError("this cannot be read")


def test_an_item_that_crashes_once_is_retried(tmp_path):
    items = ["one", f"segfault:{tmp_path / 'done'}", "two"]
    assert run(items, jobs=2) == items


def test_a_process_killed_from_outside_is_replaced_without_a_failure(tmp_path):
    items = ["one", f"SIGKILL:{tmp_path / 'done'}", "two"]
    assert run(items) == items
    with pytest.raises(ResourceError, match=r"killed twice in a row .*fewer jobs"):
        run(["SIGTERM", "one"], jobs=2)
    with pytest.raises(ResourceError, match=r"killed twice in a row .*fewer jobs"):
        run(["SIGKILL", "one"], jobs=2)


def test_an_item_at_which_a_single_process_is_killed_twice_fails():
    killed, two = run(["SIGKILL", "two"])
    assert (killed.reason, two) == ("memory", "two")


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def test_one_idle_process_is_kept_for_the_next_caller():
    pids = set(run(["pid"] * 40, jobs=2))
    assert len(pids) == 2
    assert sum(map(is_running, pids)) == 1
    assert run(["pid"])[0] in pids
    first, busy = {}, ChildPool(do, 1)
    with busy as children:
        first = next(children.map(["pid", "loop"]))
    assert not os.path.exists(f"/proc/{first}")  # It was busy, and is no zombie.
    assert run(["one"]) == ["one"]


def test_an_idle_process_that_was_killed_is_replaced():
    (pid,) = run(["pid"])
    os.kill(pid, signal.SIGKILL)
    (other,) = run(["pid"])
    assert other != pid
    assert not os.path.exists(f"/proc/{pid}")


def test_an_idle_process_gets_the_limits_and_folder_of_its_next_caller(tmp_path, monkeypatch):
    (pid,) = run(["pid"])
    (refused,) = run(["loop"], limits=Limits(seconds=0.1))
    assert refused.reason == "timeout"
    monkeypatch.chdir(tmp_path)
    assert run(["cwd"], limits=Limits(seconds=1)) == [str(tmp_path)]
    assert pid != run(["pid"])[0]


def test_no_items_start_no_process():
    with ChildPool(Unreadable(), 3) as children:
        assert list(children.map([])) == []


def test_a_child_does_not_import_torch():
    assert run(["torch"]) == [False]


def test_children_work_for_threads():
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda number: run([number, "panic", number])[::2], range(8)))
    assert results == [[number, number] for number in range(8)]


def _in_a_worker(queue):
    queue.put(run(["one", "segfault", "two"]))


def test_children_work_for_daemonic_processes():
    """As the workers of a data loader are, to which multiprocessing allows none."""
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    worker = fork.Process(target=_in_a_worker, args=(queue,), daemon=True)
    worker.start()
    one, segfault, two = queue.get(timeout=60)
    worker.join()
    assert (one, segfault.reason, two) == ("one", "crashed", "two")


def test_arrays_are_received_unchanged(monkeypatch):
    """Through shared memory, whose halves batches use in turn, or beside it where they do not fit."""
    sizes = [0, 1, 3, 70_000, 2**24 + 1, 5, 2**23, 2**23, 2**23, *range(1000, 1300), 7]
    with ChildPool(array_of, 2) as children:
        results = list(children.map(sizes))
    for size, result in zip(sizes, results, strict=True):
        expected = array_of(size)
        assert len(result) == 3
        assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(result, expected, strict=True))
        result[0][...] = 0  # It belongs to who received it.


def test_a_fork_does_not_use_the_idle_process_of_its_parent():
    (pid,) = run(["pid"])

    def work():
        assert run(["pid"])[0] != pid

    assert forked(work) == 0
    assert run(["pid"]) == [pid]


def test_a_program_needs_no_main_guard_and_leaves_no_process_behind(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "from tests.tools.lethal import do\n"
        "from cleft.data.images.decode_pool import ChildPool\n"
        "with ChildPool(do, 2) as children:\n"
        "    print(*children.map(['pid'] * 9))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
    )
    pids = done.stdout.split()
    assert len(pids) == 9
    assert done.stderr == ""
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


_AS_ON_WINDOWS = """
import os, signal, sys
sys.modules["fcntl"] = sys.modules["resource"] = None
for name in ("fork", "setpgrp", "O_NONBLOCK", "sched_getaffinity"):
    delattr(os, name)
for name in ("setitimer", "pthread_sigmask", "SIGPROF", "SIGHUP", "ITIMER_PROF"):
    delattr(signal, name)
"""


@pytest.fixture
def as_on_windows(tmp_path):
    """Runs a program, and the processes it starts, without what Windows lacks."""
    (tmp_path / "sitecustomize.py").write_text(_AS_ON_WINDOWS)
    paths = [str(tmp_path), *(path for path in sys.path if path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}

    def execute(lines):
        program = tmp_path / "program.py"
        program.write_text("\n".join(lines))
        return subprocess.run(
            [sys.executable, str(program)], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
        )

    return execute


def test_where_there_is_no_fork_children_are_spawned(as_on_windows):
    done = as_on_windows(
        [
            "import os",
            "from tests.tools.lethal import do",
            "from cleft.data.images.decode_pool import ChildPool, Limits",
            "assert not hasattr(os, 'fork')",
            "if __name__ == '__main__':",
            "    with ChildPool(do, 1, Limits(seconds=0.2)) as children:",
            "        for result in children.map(['one', 'segfault', 'panic', 'loop', 'two']):",
            "            print(result if type(result) is str else result.reason)",
        ]
    )
    assert done.stdout.split() == ["one", "crashed", "crashed", "timeout", "two"]
    assert done.stderr == ""


def test_a_program_without_a_main_guard_is_an_error_where_children_are_spawned(as_on_windows):
    done = as_on_windows(
        [
            "from cleft.data.images.decode_pool import ChildPool",
            "with ChildPool(str, 1) as children:",
            "    list(children.map(['one']))",
        ]
    )
    assert "could not start" in done.stderr
    assert "if __name__ == '__main__':" in done.stderr


def test_images_are_prepared_where_children_are_spawned(as_on_windows, tmp_path):
    done = as_on_windows(
        [
            "from pathlib import Path",
            "import numpy as np",
            "from PIL import Image",
            "from cleft.config import ImagesConfig",
            "from cleft.data.images.cache import PrepareOptions, prepare_images",
            "from cleft.types import Record",
            "if __name__ == '__main__':",
            "    pixels = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)",
            "    Image.fromarray(pixels).save('a.png')",
            "    record = Record(id='a', image=Path('a.png'), labels={}, patient='p', caption='a chest x ray')",
            "    config = ImagesConfig(stored_size=64, size=64)",
            "    found = prepare_images([record], config, Path('cache'), PrepareOptions(progress=False))",
            "    print(np.array_equal(found.pixels('a'), pixels))",
        ]
    )
    assert (done.stdout.strip(), done.stderr) == ("True", "")


def test_nothing_is_imported_that_only_some_systems_have():
    """`fcntl` and `resource` are absent from Windows; functions that use them have another way."""
    for path in Path(cleft.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {"fcntl", "resource", "pwd", "grp", "termios", "tty"} & set(names), path


class FakeMsvcrt:
    """One byte that two handles compete for."""

    LK_NBLCK = 2

    def __init__(self):
        self.places, self.free = [], True

    def locking(self, handle, mode, count):
        self.places.append((os.lseek(handle, 0, os.SEEK_CUR), mode, count))
        if not self.free:
            raise PermissionError(13, "Permission denied")
        self.free = False


def test_files_are_locked_on_windows(tmp_path, monkeypatch):
    fake = FakeMsvcrt()
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", fake)
    with (tmp_path / "lock").open("wb") as file:
        lock_file(file)
        assert fake.places == [(2**30, 2, 1)]
        assert file.tell() == 0
        with pytest.raises(BlockingIOError):
            lock_file(file)
        monkeypatch.setattr(time, "sleep", lambda seconds: setattr(fake, "free", True))
        lock_file(file, wait=True)
    monkeypatch.setitem(sys.modules, "msvcrt", None)
    with (tmp_path / "lock").open("wb") as file, pytest.raises(OSError, match="no file locks"):
        lock_file(file)


def test_children_of_a_killed_parent_end(tmp_path):
    program = (
        "from tests.tools.lethal import do; from cleft.data.images.decode_pool import ChildPool, Limits\n"
        "with ChildPool(do, 1, Limits(seconds=0.3)) as children:\n"
        "    for pid in children.map(['pid', 'loop']): print(pid, flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIG_DFL)
