"""What dies takes its own item with it, and nothing else."""

import os
import signal
import subprocess
import sys
import time

import pytest
from tests.tools.lethal import do

from cleft.data.pixels.children import Children, Death, Limits
from cleft.errors import ResourceError


def run(items, jobs=1, limits=None):
    with Children(do, jobs, limits) as children:
        return list(children.map(items))


def test_results_come_in_order_whoever_is_slow():
    items = [f"item {number}" for number in range(60)]
    items[0] = "sleep"
    assert run(items, jobs=2) == items


def test_no_items_are_no_work():
    assert run([]) == []


def test_c11_what_crashes_twice_is_given_up_and_the_rest_goes_on():
    one, segfault, left, two = run(["one", "segfault", "exit", "two"], jobs=2)
    assert (one, two) == ("one", "two")
    assert segfault == Death("crashed", "the decoder died of it (SIGSEGV), tried twice")
    assert left == Death("crashed", "the decoder died of it (exit code 7), tried twice")


def test_c11_an_endless_loop_is_cut_at_the_deadline_and_sleep_is_no_loop():
    results = run(["loop", "sleep", "one"], limits=Limits(seconds=0.2))
    assert results == [Death("timeout", "not decoded after 0.2 s of processor time, tried twice"), "sleep", "one"]


def test_c11_memory_has_a_limit(capfd):
    refused, one = run(["allocate", "one"], limits=Limits(memory=2**27))
    assert (refused.reason, one) == ("crashed", "one")
    assert "MemoryError" in capfd.readouterr().err


def test_a_program_that_its_own_children_would_begin_anew_is_told_how_to_begin(tmp_path):
    """Processes are spawned: each imports the program that started them."""
    program = tmp_path / "program.py"
    program.write_text(
        "from cleft.data.pixels.children import Children\n"
        "with Children(str, 1) as children:\n"
        "    list(children.map(['one']))\n"
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False)
    assert "could not begin" in done.stderr
    assert "if __name__ == '__main__':" in done.stderr


def test_what_crashes_once_gets_a_second_try(tmp_path):
    items = ["one", f"segfault:{tmp_path / 'done'}", "two"]
    assert run(items, jobs=2) == items


def test_a_process_killed_from_outside_is_replaced_and_no_item_blamed(tmp_path):
    items = ["one", f"SIGKILL:{tmp_path / 'done'}", "two"]
    assert run(items) == items
    with pytest.raises(ResourceError, match=r"killed twice in a row .*fewer jobs"):
        run(["one", "SIGKILL", "two"])


def test_nobody_is_left_behind():
    with Children(do, 2) as children:
        pids = {pid for pid in children.map(["pid"] * 40)}
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with Children(do, 1) as children:
        pid = next(children.map(["pid", "loop"]))
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_children_of_a_killed_parent_end(tmp_path):
    program = (
        "from tests.tools.lethal import do; from cleft.data.pixels.children import Children, Limits\n"
        "with Children(do, 1, Limits(seconds=0.3)) as children:\n"
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
