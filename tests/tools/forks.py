"""Forked child processes that a test may kill."""

import faulthandler
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from contextlib import contextmanager


def forked(work: Callable[[], None], *, quiet: bool = False) -> int:
    """Runs `work` in a child of this process; returns its exit status, negative for a signal.

    An error of the project exits with its own code, as the command line does. A child that takes longer than two
    minutes, because a lock was held by another thread when it was forked, prints where it hangs and exits with 1.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            faulthandler.dump_traceback_later(120, exit=True)
            if quiet:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, 1)
                os.dup2(null, 2)
            work()
            code = 0
        except BaseException as error:  # noqa: BLE001 a child reports whatever ended it
            traceback.print_exc()
            code = getattr(error, "exit_code", 1)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die() -> None:
    """Ends this process as a kill or a power cut does: nothing is flushed or cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def dies_at_call(number: int, names: Sequence[str] = ("fsync", "replace", "rename", "unlink")):
    """Kills this process before the n-th call of any of these functions of `os`, counted from 0."""
    calls = iter(range(10**9))
    originals = {name: getattr(os, name) for name in names}

    def counted(original):
        def call(*args, **kwargs):
            if next(calls) == number:
                die()
            return original(*args, **kwargs)

        return call

    for name, original in originals.items():
        setattr(os, name, counted(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(os, name, original)
